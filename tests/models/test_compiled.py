"""``torch.compile`` by its default backend: what is compiled computes the same, merged or not."""

import shutil
import sys

import pytest
import torch
from helpers import ROOT
from mmengine.registry import init_default_scope

from snella_seg.artifacts import merge_adapters
from snella_seg.artifacts.exportable import encode_decode

sys.path.insert(0, str(ROOT / "benchmarks"))
import backbones  # noqa: E402

pytestmark = [
    pytest.mark.skipif(not hasattr(torch.library, "custom_op"), reason="needs torch 2.4 or newer"),
    pytest.mark.skipif(
        not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler"
    ),
]
FAMILIES = [
    "timm ViT",
    "mmseg VisionTransformer",
    "mmseg SwinTransformer",
    "mmseg MixVisionTransformer",
]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


@pytest.mark.parametrize("name", FAMILIES)
def test_compiled_by_inductor_logits_are_the_same(name):
    init_default_scope("mmseg")
    model = backbones.segmentor(name).eval()
    images = backbones.image()
    with torch.no_grad():
        expected = encode_decode(model, images)
        other = encode_decode(model, images.flip(-1))
        scale = float(expected.abs().max())
        assert (expected - other).abs().max() > 1e-2 * scale  # far above the tolerance
        for merged in (False, True):
            if merged:
                torch._dynamo.reset()
                merge_adapters(model)
            model.backbone.compile(backend="inductor")
            found = encode_decode(model, images)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * scale)
