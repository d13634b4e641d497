"""timm's ViT and mmseg's VisionTransformer compute the same from converted weights."""

import sys
import types

import pytest
import torch
from torch import nn

from snella_seg.inject import FAMILIES, Family, select_matrices
from snella_seg.loading.names import from_timm, mmseg_to_timm, to_own_names, to_timm_backbone
from snella_seg.models.fused_attention import fuse_attention, restore_attention

timm = pytest.importorskip("timm", reason="needs timm")
SIZE, WIDTH = 64, 48


def to_mmseg_vit(state):
    return from_timm(state, "mmseg ViT", FAMILIES["mmseg ViT"])


@pytest.fixture(scope="module")
def timm_vit():
    """A small timm ViT whose every weight has been drawn, biases and norms included."""
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIZE, depth=2, embed_dim=WIDTH, num_heads=3, num_classes=5
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def mmseg_vit(**options):
    from mmseg.models import VisionTransformer

    defaults = dict(
        img_size=(SIZE, SIZE),
        embed_dims=WIDTH,
        num_layers=2,
        num_heads=3,
        out_indices=(0, 1),
        patch_bias=True,
        final_norm=True,
        norm_cfg=dict(type="LN", eps=1e-6),
    )
    model = VisionTransformer(**{**defaults, **options})
    model.eval()
    return model


def test_outputs_agree(timm_vit):
    model = mmseg_vit()
    model.load_state_dict(to_mmseg_vit(timm_vit.state_dict()))
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        first, last = timm_vit.get_intermediate_layers(images, n=2, reshape=True)
        expected = timm_vit.norm(timm_vit.get_intermediate_layers(images, n=1)[0])
        found = model(images)
    torch.testing.assert_close(found[0], first, atol=1e-5, rtol=0)
    expected = expected.transpose(1, 2).reshape(last.shape)
    torch.testing.assert_close(found[1], expected, atol=1e-5, rtol=0)


def test_no_weight_is_lost_but_the_classifier(timm_vit):
    state = timm_vit.state_dict()
    converted = to_mmseg_vit(state)
    assert set(converted) == set(mmseg_vit().state_dict())
    assert len(converted) == len(state) - 2  # head.weight, head.bias
    assert converted["layers.1.ffn.layers.1.weight"] is state["blocks.1.mlp.fc2.weight"]


def test_published_vit_converts(shared):
    state = torch.load(
        shared / "weights/vit_tiny_patch16_224_augreg_in21k_ft_in1k.pth", weights_only=True
    )
    model = mmseg_vit(img_size=(224, 224), embed_dims=192, num_layers=12)
    model.load_state_dict(to_mmseg_vit(state))


def test_names_are_changed_only_where_they_differ(timm_vit):
    own = to_mmseg_vit(timm_vit.state_dict())
    expected = set(mmseg_vit().state_dict())
    assert set(to_own_names(timm_vit.state_dict(), expected)) == expected
    assert to_own_names(own, expected) is own
    other = {"fc.weight": torch.zeros(1)}
    assert to_own_names(other, expected) is other


def test_a_family_is_an_entry(monkeypatch):
    """Matrices, attention and names of an architecture that nobody knew before."""

    class Attention(nn.Module):
        def forward(self, x):
            return x

    class Fused(Attention):
        pass

    module = types.ModuleType("made_up")
    module.Attention, module.Fused = Attention, Fused
    monkeypatch.setitem(sys.modules, "made_up", module)
    family = Family(
        matrices={"mixer.maps.weight": ("a", "b")},
        attention={"made_up:Attention": "made_up:Fused"},
        mark="mixer.maps.weight",
        timm_mark="token.maps.weight",
        timm_names=(("token.", "mixer."),),
    )
    monkeypatch.setitem(FAMILIES, "made up", family)
    model = nn.Module()
    model.attn, model.mixer = Attention(), nn.Module()
    model.mixer.maps = nn.Linear(4, 6)
    assert [m.name for m in select_matrices(model)] == ["mixer.maps.a", "mixer.maps.b"]
    fuse_attention(model)
    assert type(model.attn) is Fused
    restore_attention(model)
    assert type(model.attn) is Attention
    state = {"token.maps.weight": 1, "token.maps.bias": 2, "head.weight": 3}
    expected = {"mixer.maps.weight": 1, "mixer.maps.bias": 2}
    assert to_own_names(state, set(expected)) == expected


def test_weights_without_counterpart_are_named():
    model = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=WIDTH, init_values=0.1)
    with pytest.raises(ValueError, match=r"^2 weights .* blocks.0.ls1.gamma, blocks.0.ls2.gamma;"):
        to_mmseg_vit(model.state_dict())


def test_names_within_timm_backbone():
    expected = {"timm_model.model.blocks.0.norm1.weight", "timm_model.layers_0.blocks.0.x"}
    state = {"blocks.0.norm1.weight": 1, "layers.0.blocks.0.x": 2, "head.weight": 3}
    assert to_timm_backbone(state, expected) == {
        "timm_model.model.blocks.0.norm1.weight": 1,
        "timm_model.layers_0.blocks.0.x": 2,
        "head.weight": 3,
    }


@pytest.mark.parametrize(
    "name, options",
    [
        ("vit_tiny_patch16_224", dict(depth=2, embed_dim=WIDTH, out_indices=(0, 1))),
        ("swin_tiny_patch4_window7_224", dict(depths=(1, 1, 1, 1), out_indices=(0, 1, 2, 3))),
    ],
)
def test_every_name_of_a_timm_backbone_is_found(name, options):
    from mmseg.models import TIMMBackbone

    expected = TIMMBackbone(name, pretrained=False, features_only=True, **options).state_dict()
    del options["out_indices"]
    state = timm.create_model(name, **options).state_dict()
    assert set(expected) <= set(to_timm_backbone(state, set(expected)))


def test_vit_weights_go_to_timm_and_come_back(timm_vit):
    expected = {k: v for k, v in timm_vit.state_dict().items() if not k.startswith("head.")}
    found = mmseg_to_timm(to_mmseg_vit(expected))
    assert list(found) == list(expected)
    assert all(found[k] is v for k, v in expected.items())


def test_swin_weights_go_to_timm():
    """timm's Swin gives the features of mmseg's with its weights."""
    from mmseg.models import SwinTransformer

    torch.manual_seed(0)
    sizes = dict(embed_dims=12, depths=(2, 2), num_heads=(2, 4), window_size=4)
    swin = SwinTransformer(pretrain_img_size=64, strides=(4, 2), out_indices=(0, 1), **sizes)
    for name, parameter in swin.named_parameters():
        if not name.startswith("norm"):  # output norms, which timm's does without
            torch.nn.init.normal_(parameter, std=0.2)
    swin.eval()
    options = dict(embed_dim=12, depths=(2, 2), num_heads=(2, 4), window_size=4, img_size=64)
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, **options).eval()
    problems = model.load_state_dict(mmseg_to_timm(swin.state_dict()), strict=False)
    assert problems.missing_keys == ["norm.weight", "norm.bias"]  # timm's own last norm
    assert not problems.unexpected_keys
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = swin(images)[-1]
        found = model.forward_features(images).permute(0, 3, 1, 2)  # with timm's new norm
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_timm_backbones_get_their_names_back():
    names = {
        "timm_model.model.blocks.0.attn.qkv.weight": "blocks.0.attn.qkv.weight",
        "timm_model.layers_0.blocks.1.mlp.fc1.bias": "layers.0.blocks.1.mlp.fc1.bias",
        "timm_model.patch_embed.proj.weight": "patch_embed.proj.weight",
    }
    assert list(mmseg_to_timm(dict.fromkeys(names, torch.zeros(1)))) == list(names.values())


def test_other_architectures_are_refused(timm_vit):
    with pytest.raises(ValueError, match="known for mmseg's VisionTransformer and SwinTransf"):
        mmseg_to_timm({"conv1.weight": torch.zeros(1)})
    state = to_mmseg_vit(timm_vit.state_dict())
    with pytest.raises(ValueError, match="no counterpart in timm's ViT: extra.weight"):
        mmseg_to_timm({**state, "extra.weight": torch.zeros(1)})
