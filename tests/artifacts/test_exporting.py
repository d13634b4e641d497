"""Exported files compute what the adapted model computes, on sizes and batches they never saw."""

import copy
import json
import os
import re
import sys

import cv2
import pytest
import torch
from helpers import ROOT
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from tasks import randomize

from snella_seg.artifacts import Deployable, export_segmentor
from snella_seg.artifacts.exportable import _AnySizePool
from snella_seg.loading import CheckpointError
from snella_seg.models import describe_backbone

sys.path.insert(0, str(ROOT / "benchmarks"))
import backbones  # noqa: E402
from tiny_backbones import TINY  # noqa: E402

SUFFIXES = [".onnx", ".pt2"]
#: Family -> what of the images may vary in its files.
VARIES = {
    "mmseg VisionTransformer": "batch and size",
    "mmseg SwinTransformer": "batch",
    "mmseg MixVisionTransformer": "batch and size",
    "timm ViT": "batch and size",
    "timm DINOv2": "batch and size",
    "timm DINOv3": "batch and size",
}
#: Of the other families, one of each kind; SNELLA_ALL_EXPORTS=1 takes them all.
SOME = ["timm Hiera", "timm Swin", "timm TinyViT", "timm Twins-SVT"]


def need(suffix: str) -> None:
    """Skip where the packages for a kind of file are missing."""
    if suffix == ".onnx":
        pytest.importorskip("onnxscript", reason="ONNX needs the extra 'export'")
        pytest.importorskip("onnxruntime", reason="ONNX needs the extra 'export'")


def segmentor(config: Config, backbone: dict, head: str = "UPerHead") -> torch.nn.Module:
    """A segmentor with random adapters on a tiny backbone."""
    cfg = Config(copy.deepcopy(config.to_dict()))
    init_default_scope("mmseg")
    cfg.model.backbone = ConfigDict(
        type="SnellaBackbone", adapter=dict(rank=4), backbone=copy.deepcopy(backbone)
    )
    channels = list(describe_backbone(MODELS.build(cfg.model.backbone)).channels)
    common = dict(channels=8, num_classes=4, norm_cfg=dict(type="BN"), align_corners=False)
    options = dict(pool_scales=(1, 2, 3, 6)) if head == "UPerHead" else {}
    cfg.model.pop("neck")
    cfg.model.pop("auxiliary_head")
    cfg.model.decode_head = ConfigDict(
        type=head, in_channels=channels, in_index=list(range(len(channels))), **common, **options
    )
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    randomize(model, 0)
    model.cfg, model.dataset_meta = cfg, dict(classes=("a", "b", "c", "d"), palette=None)
    return model.eval()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("family", VARIES)
def test_families(tiny_config_file, tmp_path, family, suffix):
    need(suffix)
    model = segmentor(Config.fromfile(tiny_config_file), TINY[family])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = export_segmentor(model, tmp_path / f"out{suffix}")
    assert report.info["varies"] == VARIES[family], report.refused
    assert report.path.is_file() and len(list(tmp_path.glob("out*"))) == 1
    assert {proof.shape[0] for proof in report.proofs} == {1, 3}
    sizes = {proof.shape[2:] for proof in report.proofs}
    assert (len(sizes) > 1) == (VARIES[family] == "batch and size")
    assert all(proof.holds and proof.same == 1 for proof in report.proofs)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("family", TINY if os.environ.get("SNELLA_ALL_EXPORTS") else SOME)
def test_the_table_of_the_docs_says_what_onnx_takes(family):
    need(".onnx")
    text = (ROOT / "docs" / "backbones.md").read_text()
    cell = re.search(rf"^\| {re.escape(family)} \|.*\| ([^|]+) \|$", text, re.MULTILINE)[1]
    init_default_scope("mmseg")
    assert backbones.exported(family)[0] == cell


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(7, 13), (6, 6), (5, 4)])
def test_pooling_is_torchs(bins, size):
    x = torch.randn(2, 3, *size, dtype=torch.double)
    expected = torch.nn.functional.adaptive_avg_pool2d(x, bins)
    torch.testing.assert_close(_AnySizePool(bins)(x), expected)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_labels_of_normalised_images_at_one_size(build, tmp_path, suffix):
    need(suffix)
    path = tmp_path / f"out{suffix}"
    report = export_segmentor(build(0), path, size=(64, 96), labels=True, normalise=False)
    assert report.info["varies"] == "batch" and report.info["size"] == [64, 96]
    assert report.info["output"]["name"] == "labels"
    assert report.info["input"]["values"] == "normalised"
    assert all(p.difference is None and p.same == 1 for p in report.proofs)


def test_one_logit_is_labelled_by_its_threshold(build, config, tmp_path):
    config.model.decode_head.update(num_classes=2, out_channels=1)
    model = build(0)
    images = torch.rand(1, 3, 64, 64) * 255
    with torch.no_grad():
        logits = Deployable(model)(images)
        model.decode_head.threshold = float(logits.sigmoid().median())
        labels = Deployable(model, labels=True)(images)
    assert torch.equal(labels, (logits.sigmoid() > model.decode_head.threshold)[:, 0].long())
    assert 0 < labels.sum() < labels.numel()
    assert export_segmentor(model, tmp_path / "one.pt2", labels=True).proofs[0].same == 1


def test_an_image_in_stock_order(build, tiny_dataset, tmp_path):
    """The file alone makes of an image what the model makes of it in a test."""
    image = next((tiny_dataset / "images/validation").iterdir())
    model = build(0)
    report = export_segmentor(model, tmp_path / "out.pt2", image=str(image))
    assert report.proofs[0].shape == (1, 3, 64, 64)
    found = torch.export.load(tmp_path / "out.pt2", extra_files=(kept := {"snella.json": ""}))
    given = torch.from_numpy(cv2.imread(str(image)).transpose(2, 0, 1)[None]).float()
    with torch.no_grad():
        labels = found.module()(given).argmax(1)
        expected = model.test_step(dict(inputs=[given[0]], data_samples=[_sample(64)]))
    assert torch.equal(labels, expected[0].pred_sem_seg.data)
    assert json.loads(kept["snella.json"])["classes"] == ["a", "b"]


def _sample(side: int):
    from mmseg.structures import SegDataSample

    return SegDataSample(metainfo=dict(ori_shape=(side, side), img_shape=(side, side)))


def test_what_is_unequal_is_not_kept(build, tmp_path, monkeypatch):
    path = tmp_path / "out.pt2"
    path.write_text("the one before")
    forward = Deployable.forward
    monkeypatch.setattr(Deployable, "forward", lambda self, x: forward(self, x) * 1.01)
    with pytest.raises(CheckpointError, match="does not compute what the model computes"):
        export_segmentor(build(0), path)
    assert path.read_text() == "the one before" and list(tmp_path.glob("out*")) == [path]


def test_compiled_in_eval_mode_it_is_the_same(build, image):
    deployable = Deployable(build(0), normalise=False).eval()
    compiled = torch.compile(deployable, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        expected = deployable(image)
        torch.testing.assert_close(compiled(image), expected)
        again = image.flip(-1)
        torch.testing.assert_close(compiled(again), deployable(again))
        assert (expected - deployable(again)).abs().max() > 1e-3  # far above the tolerance


def test_what_cannot_be_exported_ends_in_a_line(
    tool, build, config, config_file, tmp_path, monkeypatch
):
    checkpoint, out = tmp_path / "task.pth", tmp_path / "out.pt2"
    torch.save(dict(state_dict=build(0).state_dict(), meta={}), checkpoint)

    def refused(*args) -> str:
        done = tool("export", *args)
        assert done.code == 1 and len(done.err.strip().splitlines()) == 1, done.err
        assert not list(tmp_path.glob("out*"))
        return done.err

    assert "name the file .onnx" in refused(config_file, checkpoint, tmp_path / "out.pb")
    assert "checkpoint not found" in refused(config_file, tmp_path / "none.pth", out)
    assert "multiples of 32" in refused(config_file, checkpoint, out, "--size", 60, 64)
    slide = "model.test_cfg=dict(mode='slide', crop_size=(64, 64), stride=(32, 32))"
    derived = tmp_path / "slide.py"
    derived.write_text(f"_base_ = './with_base.py'\nmodel = dict({slide.partition('.')[2]})")
    assert "give --size 64 64" in refused(derived, checkpoint, out)
    monkeypatch.setattr("importlib.util.find_spec", _without_onnx)
    assert "snella_seg[export]" in refused(config_file, checkpoint, tmp_path / "out.onnx")
    monkeypatch.undo()
    done = tool("export", derived, checkpoint, out, "--size", 64, 64)
    assert done.code == 0 and "height and width 64x64" in done.out, done.err


def _without_onnx(name, *rest):
    return None if name.startswith("onnx") else sys.modules.get(name)
