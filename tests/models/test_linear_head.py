"""The head of linear evaluation: batch norm, then a 1x1 convolution."""

import pytest
import torch
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules

import snella_seg.register  # noqa: F401

register_all_modules()


def build(**options):
    torch.manual_seed(0)
    return MODELS.build(dict(type="LinearHead", num_classes=4, align_corners=False, **options))


def test_it_is_a_normalised_linear_map():
    head = build(in_channels=6).eval()
    head.norm.running_mean.normal_(), head.norm.running_var.uniform_(0.5, 2.0)
    x = torch.randn(2, 6, 3, 5)
    plain = (x - head.norm.running_mean[:, None, None]) / (
        head.norm.running_var[:, None, None] + head.norm.eps
    ).sqrt()
    expected = torch.einsum("oi,nihw->nohw", head.conv_seg.weight[:, :, 0, 0], plain)
    expected = expected + head.conv_seg.bias[:, None, None]
    torch.testing.assert_close(head((x,)), expected, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in head.parameters()) == 2 * 6 + 6 * 4 + 4


def test_several_maps_are_joined():
    head = build(in_channels=[6, 3], in_index=[0, 2])
    maps = torch.randn(1, 6, 4, 4), torch.randn(1, 9, 4, 4), torch.randn(1, 3, 2, 2)
    assert head(maps).shape == (1, 4, 4, 4) and head.conv_seg.in_channels == 9


def test_channels_cannot_be_chosen():
    with pytest.raises(
        ValueError, match="as many channels as its maps together, 6, got channels=8"
    ):
        build(in_channels=6, channels=8)
