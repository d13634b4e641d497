"""Every supported family of backbones, at toy size, by the checks of docs/backbones.md."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("mmseg")
pytest.importorskip("timm")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import backbones  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402
from mmseg.utils import register_all_modules  # noqa: E402
from tiny_backbones import TINY  # noqa: E402

from snella_seg.inject import add_adapters, cover, select_matrices  # noqa: E402
from snella_seg.models import describe_backbone  # noqa: E402

register_all_modules()


@pytest.mark.parametrize("name", TINY)
def test_family(name):
    for check, run in backbones.CHECKS.items():
        if not (check == "any size" and backbones.fixed_size(name)):
            run(name)


def test_the_table_of_the_docs_lists_every_family():
    text = (Path(__file__).resolve().parents[2] / "docs/backbones.md").read_text()
    assert [name for name in TINY if f"| {name} |" not in text] == []


@pytest.mark.parametrize(
    "name, channels, strides",
    [
        ("mmseg VisionTransformer", (16, 16), (16, 16)),
        ("timm Swin", (8, 16, 32, 64), (4, 8, 16, 32)),
        ("timm ConvNeXt", (8, 8, 16, 16), (4, 8, 16, 32)),
    ],
)
def test_describe_gives_what_a_head_needs(name, channels, strides):
    facts = describe_backbone(TINY[name])
    assert (facts.channels, facts.strides) == (channels, strides)
    assert 0 < facts.coverage.share < 1


def test_a_backbone_may_do_without_convolutions():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.blocks = nn.Linear(3 * 16 * 16, 8), nn.ModuleList([Block()])
            del self.blocks[0].mlp.spatial

        def forward(self, x):
            rows = nn.functional.unfold(x, 16, stride=16).movedim(1, 2)
            maps = self.blocks[0].mlp.fc1(self.embed(rows))
            return (maps.movedim(2, 1).unflatten(2, (x.shape[2] // 16, -1)),)

    MODELS.register_module(module=Rows, force=True)
    facts = describe_backbone(dict(type="Rows"))
    assert facts.channels == (8,) and facts.strides == (16,)


class Block(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv = nn.Linear(width, 3 * width)
        self.mlp.fc1 = nn.Linear(width, width)
        self.mlp.mixing = nn.Parameter(torch.zeros(width, width))
        self.mlp.spatial = nn.Conv2d(width, width, 3)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.blocks = nn.Linear(8, 8), nn.ModuleList(Block() for _ in range(2))


def test_what_is_left_out_is_named():
    """A convolution of several pixels has a reason; what lies between blocks is not of blocks."""
    model = Encoder()
    names = [m.name for m in select_matrices(model, "auto")]
    assert names == [f"blocks.{i}.{m}" for i in (0, 1) for m in
                     ("attn.qkv.q", "attn.qkv.k", "attn.qkv.v", "mlp.fc1.fc1")]  # fmt: skip
    coverage = cover(model, names)
    assert (coverage.blocks, coverage.adapted) == (2, 2 * (3 * 64 + 64))
    (left,) = coverage.left_out
    assert left.kind == "mlp.spatial" and left.reason == "convolution of several pixels"
    assert "2 mlp.spatial" in coverage.line()
    everything = [m.module for m in select_matrices(model, "all-linear")]
    assert everything[0] == "embed" and len(set(everything)) == 5


def test_a_gap_that_nothing_explains_is_refused():
    """'auto' is complete or an error: here a linear map whose weight no adapter can take."""
    model = Encoder()
    model.blocks[0].mlp.extra = nn.Bilinear(8, 8, 8)
    with pytest.raises(ValueError, match=r"cannot adapt 1 weights.*blocks.0.mlp.extra.*left_out"):
        select_matrices(model, "auto")


@pytest.mark.parametrize("stride", [1, 2])
def test_a_pointwise_convolution_is_a_linear_layer(stride):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(6, 4, 1, stride=stride)).requires_grad_(False)
    x = torch.randn(2, 6, 5, 7, requires_grad=True)
    adapted = nn.Sequential(nn.Conv2d(6, 4, 1, stride=stride)).requires_grad_(False)
    adapted.load_state_dict(plain.state_dict())
    (adapter,) = add_adapters(adapted, dict(rank=4), ["*"]).values()
    with torch.no_grad():
        for factor in adapter.factors:
            factor.normal_()
    y = adapted(x)
    weight = plain[0].weight + adapter.delta_weight()[..., None, None]
    expected = nn.functional.conv2d(x, weight, plain[0].bias, stride)
    torch.testing.assert_close(y, expected)
    assert y.is_contiguous()
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    (right,) = torch.autograd.grad(expected.square().sum(), x)
    torch.testing.assert_close(grad, right)
    assert adapted[0].weight.shape == (4, 6, 1, 1)


def test_an_activation_in_place_may_follow_a_pointwise_convolution():
    """In channels_last, too, where the map is a view of what the product gives."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(6, 4, 1), nn.SiLU(inplace=True)).requires_grad_(False)
    x = torch.randn(2, 6, 5, 7).to(memory_format=torch.channels_last)
    (adapter,) = add_adapters(plain, dict(rank=4), ["*"]).values()
    expected = nn.functional.silu(nn.functional.conv2d(x, plain[0].weight, plain[0].bias))
    y = plain(x)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    assert all(factor.grad is not None for factor in adapter.factors)
