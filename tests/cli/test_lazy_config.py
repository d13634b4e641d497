"""Configs in pure Python: inherited with ``read_base()``, their types classes instead of names."""

import re
from importlib import import_module

import pytest
import torch
from helpers import scores_of
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

import snella_seg.register  # noqa: F401

#: Modules in which the classes that the tiny config names are looked for.
MODULES = (
    "mmengine.dataset",
    "mmengine.hooks",
    "mmengine.optim",
    "mmengine.runner",
    "mmengine.visualization",
    "mmseg.datasets",
    "mmcv.transforms",
    "mmseg.evaluation",
    "mmseg.models",
    "mmseg.visualization",
    "mmseg.engine.hooks",
    "torch.optim",
    "snella_seg.hooks",
    "snella_seg.models",
    "snella_seg.optim",
)


def as_classes(text: str) -> str:
    """The text of a config, its types as classes, which it imports."""
    places = {}
    for name in set(re.findall(r"(?:type|constructor)='(\w+)'", text)):
        places[name] = next((m for m in MODULES if hasattr(import_module(m), name)), None)
    found = {name: place for name, place in places.items() if place}
    for name in found:
        text = re.sub(rf"(type|constructor)='{name}'", rf"\1={name}", text)
    imports = [f"from {place} import {name}" for name, place in sorted(found.items())]
    return "\n".join([*imports, text])


@pytest.fixture
def lazy_config(tiny_config_file, tmp_path):
    """A config that inherits the tiny one, both in pure Python; nothing writes scalars."""
    config = Config.fromfile(tiny_config_file)
    for unneeded in ("custom_imports", "tta_model", "tta_pipeline"):
        config.pop(unneeded)
    config.param_scheduler = [dict(type="PolyLR", end=8, by_epoch=False)]
    config.default_hooks.checkpoint.type = "SnellaCheckpointHook"
    config.visualizer.vis_backends = []
    init_default_scope("mmseg")
    base = MODELS.build(config.model.backbone.backbone).state_dict()
    torch.save(base, tmp_path / "base.pth")
    config.model.backbone.base_checkpoint = str(tmp_path / "base.pth")
    (tmp_path / "lazy_base.py").write_text(as_classes(config.pretty_text))
    path = tmp_path / "lazy.py"
    path.write_text(
        "from mmengine.config import read_base\n\n"
        "with read_base():\n    from .lazy_base import *\n\n"
        "model.backbone.update(adapter=dict(rank=2))\n"
    )
    return path


def test_the_fixture_names_classes(lazy_config):
    config = Config.fromfile(lazy_config)
    assert isinstance(config.model.backbone.type, type)
    assert isinstance(config.param_scheduler[0].type, type)
    assert isinstance(config.optim_wrapper.constructor, type)


def test_every_tool_takes_classes(lazy_config, tool, tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = tiny_dataset / "images/validation/0.jpg"
    for name, *args in (
        ("preflight", lazy_config),
        ("train", lazy_config, "--work-dir", "run"),
        ("train", lazy_config, "--amp", "--work-dir", "amp"),
        ("test", lazy_config, "run/iter_8.pth", "--work-dir", "t", "--show-dir", "painted"),
        ("test", "run/lazy.py", "run/iter_8.pth", "--work-dir", "dumped"),
        ("export_adapter", lazy_config, "run/iter_8.pth", "a.safetensors"),
        ("segment", image, "a.safetensors", "--out", "seen"),
        ("export_delta", lazy_config, "run/iter_8.pth", "delta.safetensors"),
        ("merge", lazy_config, "run/iter_8.pth", "merged", "--image", image),
        ("test", "merged/merged.py", "merged/merged.pth", "--work-dir", "stock"),
        ("report", "run"),
        ("compare", lazy_config, "--methods", "frozen", "--iters", "2", "--cost-rounds", "1"),
    ):
        ended = tool(name, *args)
        assert ended.code == 0, f"{name}: {ended.err[-600:]}"
    assert "Snella" not in Config.fromfile("merged/merged.py").pretty_text
    scores = [scores_of(tmp_path / work_dir)["mIoU"] for work_dir in ("t", "dumped", "stock")]
    assert scores[0] == scores[1] == scores[2]
