"""A base, its file, and tasks on it: tiny, with random values that no initialisation has."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from tasks import randomize, save_base

import snella_seg.register  # noqa: F401
from snella_seg.artifacts import save_adapter


@pytest.fixture
def config(tiny_config_file, tmp_path) -> Config:
    """The tiny config, its base in a file."""
    cfg = Config.fromfile(tiny_config_file)
    cfg.model.backbone.base_checkpoint = str(save_base(cfg, tmp_path / "base.pth"))
    return cfg


@pytest.fixture
def config_file(config, tmp_path) -> Path:
    """That config as a file."""
    path = tmp_path / "with_base.py"
    config.dump(path)
    return path


@pytest.fixture
def build(config) -> Callable:
    """``build(seed)``: a segmentor with its base and a random task; options change its config."""

    def make(seed: int | None = 0, classes: int | None = None, **options):
        cfg = Config(config.to_dict())
        for key, value in options.items():  # update() would merge dicts
            cfg.model.backbone[key] = value
        if classes is not None:
            cfg.model.decode_head.num_classes = classes
            cfg.model.auxiliary_head.num_classes = classes
        init_default_scope("mmseg")
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        model.backbone.init_weights()
        if seed is not None:
            randomize(model, seed)
        model.cfg = cfg
        model.dataset_meta = dict(classes=("a", "b"), palette=[[0, 0, 0], [9, 9, 9]])
        return model.eval()

    return make


@pytest.fixture
def adapter_file(build, tmp_path) -> Path:
    """An adapter file of the task of seed 0."""
    path = tmp_path / "task.safetensors"
    save_adapter(build(0), path)
    return path


@pytest.fixture
def image() -> torch.Tensor:
    """A batch of one normalised image."""
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
