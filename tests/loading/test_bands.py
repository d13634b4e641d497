"""Images of other bands than RGB: a trained patch embedding starts from the RGB one."""

import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

import snella_seg.register  # noqa: F401
from snella_seg.loading import CheckpointError

VIT = dict(
    type="VisionTransformer",
    img_size=32,
    patch_size=8,
    embed_dims=16,
    num_layers=1,
    num_heads=2,
    out_indices=(0,),
)


@pytest.fixture
def rgb(tmp_path):
    """A file of weights for three bands."""
    init_default_scope("mmseg")
    torch.manual_seed(0)
    torch.save(MODELS.build(VIT).state_dict(), tmp_path / "rgb.pth")
    return str(tmp_path / "rgb.pth")


def build(rgb, count, **options):
    inner = dict(VIT, in_channels=count)
    config = dict(type="SnellaBackbone", backbone=inner, base_checkpoint=rgb)
    return MODELS.build({**config, "adapter": dict(rank=4), **options})


@pytest.mark.parametrize("bands", [1, 4, 12])
def test_bands_that_are_alike_give_the_maps_of_rgb(rgb, bands):
    model = build(rgb, bands, trainable=["cls_token", "patch_embed"])
    model.init_weights()
    three = build(rgb, 3)
    three.init_weights()
    grey = torch.randn(2, 1, 32, 32)
    found = model.backbone.patch_embed(grey.expand(-1, bands, -1, -1))[0]
    torch.testing.assert_close(
        found, three.backbone.patch_embed(grey.expand(-1, 3, -1, -1))[0], rtol=1e-4, atol=1e-5
    )
    assert model.backbone.patch_embed.projection.weight.requires_grad


def test_a_frozen_embedding_for_other_bands_is_refused_and_says_how(rgb):
    with pytest.raises(CheckpointError, match="for 3 bands, not 4: .*bands=.mean."):
        build(rgb, 4).init_weights()


@pytest.mark.parametrize("bands", [1, 4])
@pytest.mark.parametrize("rule", ["mean", "copy", "random"])
def test_a_rule_trains_the_patch_embedding(rgb, bands, rule):
    model = build(rgb, bands, bands=rule)
    model.init_weights()
    found = model.backbone.patch_embed.projection
    assert found.weight.requires_grad and "patch_embed.projection.weight" in model.trained_base
    given = torch.load(rgb)["patch_embed.projection.weight"]
    if rule == "copy":
        torch.testing.assert_close(found.weight[:, 0], given[:, 0] * 3 / bands)
    elif rule == "mean":
        torch.testing.assert_close(found.weight[:, 0], given.mean(1) * 3 / bands)
    else:
        assert not torch.allclose(found.weight[:, 0], given.mean(1) * 3 / bands)


def test_weights_for_these_bands_stay_frozen(rgb, tmp_path):
    four = MODELS.build(dict(VIT, in_channels=4))
    torch.save(four.state_dict(), tmp_path / "four.pth")
    model = build(str(tmp_path / "four.pth"), 4)
    model.init_weights()
    assert not model.backbone.patch_embed.projection.weight.requires_grad


def test_an_unknown_rule_is_refused(rgb):
    with pytest.raises(ValueError, match="bands must be one of mean, copy, random"):
        build(rgb, 4, bands="avg")
