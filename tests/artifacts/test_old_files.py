"""Files of version 0.1 load and resume; the expected logits are those that it gave."""

import copy

import old_files
import pytest
import torch
from helpers import history
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from mmseg.registry import MODELS
from tasks import save_base

import snella_seg.register  # noqa: F401
from snella_seg.artifacts import load_adapter
from snella_seg.inject import list_adapters


@pytest.fixture
def base(tmp_path):
    old_files.write_base(tmp_path / "base.pth")
    return tmp_path / "base.pth"


@pytest.fixture
def model(base):
    config = copy.deepcopy(old_files.MODEL)
    config["backbone"]["base_checkpoint"] = str(base)
    init_default_scope("mmseg")
    model = MODELS.build(config)
    model.backbone.init_weights()
    return model.eval()


def check(model, tensors) -> None:
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in tensors.items())
    counts = [adapter.num_nonzero for adapter in list_adapters(model).values()]
    assert counts == [nonzero for *_, nonzero in old_files.ADAPTERS.values()]
    image = 2 * torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32).sin()
    with torch.no_grad():
        logits = model(image, mode="tensor").double()
    assert float(logits.sum()) == pytest.approx(5.442860, abs=1e-4)
    assert float(logits.square().sum()) == pytest.approx(759.095867, abs=1e-3)
    assert logits[0, :, 1, 2].tolist() == pytest.approx([3.151428, 2.178536, -4.011839], abs=1e-5)


def test_adapter_file_loads(model, base, tmp_path):
    path = tmp_path / "task.safetensors"
    tensors = old_files.write_adapter_file(path, base)
    assert load_adapter(model, path).info["metainfo"]["classes"] == ("a", "b", "c")
    check(model, tensors)


@pytest.mark.parametrize("kind", ["checkpoint", "adapter file"])
def test_mmengine_loads(model, base, tmp_path, kind):
    path = tmp_path / ("old.pth" if kind == "checkpoint" else "old.safetensors")
    writers = {"checkpoint": "write_slim_checkpoint", "adapter file": "write_adapter_file"}
    tensors = getattr(old_files, writers[kind])(path, base)
    load_checkpoint(model, str(path), strict=True)
    check(model, tensors)


def test_slim_checkpoint_resumes_exactly(tool, tiny_config_file, tmp_path):
    base = save_base(Config.fromfile(tiny_config_file), tmp_path / "base.pth")
    config = tmp_path / "slim.py"
    config.write_text(
        f"_base_ = './{tiny_config_file.name}'\n"
        f"model = dict(backbone=dict(base_checkpoint='{base}'))\n"
        "default_hooks = dict(checkpoint=dict(type='SnellaCheckpointHook'))\n"
    )
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert tool("train", config, "--work-dir", whole).code == 0
    old = old_files.as_version_0_1(torch.load(whole / "iter_4.pth", weights_only=False))
    resumed.mkdir()
    torch.save(old, resumed / "iter_4.pth")
    (resumed / "last_checkpoint").write_text(str(resumed / "iter_4.pth"))
    assert tool("train", config, "--work-dir", resumed, "--resume").code == 0
    expected, found = (
        torch.load(folder / "iter_8.pth", weights_only=False)["state_dict"]
        for folder in (whole, resumed)
    )
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert [r["nonzero"] for r in history(resumed)] == [r["nonzero"] for r in history(whole)][-1:]
