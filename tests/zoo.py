"""The zoo of configs, built without weights or memory, and made small enough to take a step."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from helpers import ROOT
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn

from snella_seg.configs import replace_type

CONFIGS = ROOT / "configs"
#: Every config in a folder of its family; test_configs.py and test_grounds.py have the others.
ZOO = [
    path.relative_to(CONFIGS).as_posix()
    for path in sorted(CONFIGS.glob("*/*.py"))
    if path.parent.name not in ("_base_", "grounds")
]
_linspace = torch.linspace


@contextmanager
def on_meta() -> Iterator[None]:
    """Parameters have shapes only; drop-path rates, read as numbers, are made all the same."""
    torch.linspace = lambda *args, **options: _linspace(*args, **{**options, "device": "cpu"})
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.linspace = _linspace


def load(name: str | Path) -> Config:
    """A config whose model needs no several processes."""
    cfg = Config.fromfile(CONFIGS / name)
    replace_type(cfg.model, "SyncBN", "BN")
    return cfg


def build(cfg: Config) -> nn.Module:
    init_default_scope("mmseg")
    return MODELS.build(cfg.model)


def shrink(cfg: Config, side: int) -> None:
    """Two blocks a stage or as many as maps are asked for, narrow heads, images of one size."""
    model, inner = cfg.model, cfg.model.backbone.backbone
    if inner.type == "TIMMBackbone" or isinstance(inner.get("num_layers"), int):
        depth = "depth" if inner.type == "TIMMBackbone" else "num_layers"
        inner[depth], inner.out_indices = 4, (0, 1, 2, 3)
    for key in ("depths", "num_layers"):
        if isinstance(inner.get(key), list):
            inner[key] = [1] * len(inner[key])
    if "img_size" in inner:
        inner.img_size = (side, side)
    for name in ("decode_head", "auxiliary_head"):
        if "channels" in (model.get(name) or {}):
            model[name].channels = 16
    model.data_preprocessor.size = (side, side)


def batch(side: int, count: int = 2) -> dict:
    """Images of noise with labels of two classes."""
    samples = []
    for _ in range(count):
        sample = SegDataSample(metainfo=dict(img_shape=(side, side), ori_shape=(side, side)))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 2, (1, side, side)))
        samples.append(sample)
    images = [torch.randint(0, 256, (3, side, side), dtype=torch.uint8) for _ in range(count)]
    return dict(inputs=images, data_samples=samples)
