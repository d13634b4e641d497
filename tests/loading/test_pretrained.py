"""Weights in every published layout give a backbone the features of the model that they are of.

Nothing is downloaded: the files are written by the tests from models with random weights.
"""

import copy

import layouts
import pytest
import torch
from mmengine.config import ConfigDict
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules
from torch.nn.functional import layer_norm

import snella_seg.register  # noqa: F401
from snella_seg.loading import CheckpointError
from snella_seg.loading.conversion import convert
from snella_seg.loading.formats import FORMATS
from snella_seg.loading.weights_file import read_weights

timm = pytest.importorskip("timm", reason="needs timm")
register_all_modules()

SIZE, WIDTH, PATCH, DEPTH = 32, 16, 8, 2
TIMM = dict(embed_dim=WIDTH, depth=DEPTH, num_heads=2, patch_size=PATCH, img_size=SIZE)
SWIN = dict(embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=2, img_size=SIZE)
_MMSEG = dict(
    img_size=(SIZE, SIZE),
    patch_size=PATCH,
    embed_dims=WIDTH,
    num_layers=DEPTH,
    num_heads=2,
    out_indices=(DEPTH - 1,),
    norm_cfg=dict(type="LN", eps=1e-6),
)


def timm_backbone(name, **options):
    options = {**TIMM, "out_indices": (DEPTH - 1,), **options}
    return dict(type="TIMMBackbone", model_name=name, pretrained=False, **options)


TARGETS = {
    "mmseg ViT": dict(type="VisionTransformer", patch_bias=True, **_MMSEG),
    "mmseg MAE": dict(type="MAE", init_values=1.0, **_MMSEG),
    "mmseg BEiT": dict(type="BEiT", **_MMSEG),
    "mmseg Swin": dict(
        type="SwinTransformer",
        pretrain_img_size=SIZE,
        embed_dims=8,
        depths=(2, 2),
        num_heads=(1, 2),
        strides=(4, 2),
        out_indices=(1,),
        window_size=2,
    ),
    "mmseg MiT": dict(
        type="MixVisionTransformer",
        embed_dims=8,
        num_stages=2,
        num_layers=(1, 2),
        num_heads=(1, 2),
        patch_sizes=(7, 3),
        strides=(4, 2),
        sr_ratios=(8, 1),
        out_indices=(1,),
    ),
    "timm ViT": timm_backbone("vit_tiny_patch16_224"),
    "timm BEiT": timm_backbone("beit_base_patch16_224"),
    "timm DINOv2": timm_backbone("vit_small_patch14_dinov2"),
    "timm DINOv2 reg4": timm_backbone("vit_small_patch14_reg4_dinov2"),
    "timm DINOv2 gated": timm_backbone("vit_giant_patch14_reg4_dinov2", mlp_ratio=6),
    "timm DINOv3": timm_backbone("vit_small_patch16_dinov3"),
    "timm DINOv3 qkvb": timm_backbone("vit_small_patch16_dinov3_qkvb"),
    "timm DINOv3 gated": timm_backbone("vit_small_plus_patch16_dinov3"),
    "timm Swin": dict(
        type="TIMMBackbone",
        model_name="swin_tiny_patch4_window7_224",
        pretrained=False,
        out_indices=(1,),
        **SWIN,
    ),
}
HEIGHT = {"mmseg Swin": 4, "timm Swin": 4, "mmseg MiT": 4}


def drawn(model):
    """The model with every weight drawn, biases and scales included, in eval mode."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def loaded(target, path, **options):
    inner = ConfigDict(copy.deepcopy(TARGETS[target]))
    config = dict(type="SnellaBackbone", backbone=inner, method="frozen", **options)
    model = MODELS.build(ConfigDict(config, base_checkpoint=str(path)))
    model.init_weights()
    return model.eval()


IMAGES = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_same(model, expected, normalised=False):
    (found,) = model(IMAGES)
    if normalised:  # mmseg's Swin ends in norms of its own, fresh here
        expected = layer_norm(expected, expected.shape[-1:])
    expected = expected.unflatten(1, found.shape[2:]) if expected.ndim == 3 else expected
    torch.testing.assert_close(found, expected.permute(0, 3, 1, 2), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def timm_tokens(model):
    """Tokens of patches after the last block of a timm ViT, (N, patches, width)."""
    return (
        model.get_intermediate_layers(IMAGES, n=1)[0]
        if hasattr(model, "get_intermediate_layers")
        else model.forward_intermediates(
            IMAGES, indices=1, norm=False, output_fmt="NLC", intermediates_only=True
        )[0]
    )


_VIT_WRITERS = [
    "timm",
    "timm_safetensors",
    "deit",
    "mae",
    "dino",
    "dino_teacher_in_ddp",
    "moco",
    "mmpretrain",
    "mmseg",
    "npz",
]


@pytest.mark.parametrize("target", ["mmseg ViT", "mmseg MAE", "timm ViT"])
@pytest.mark.parametrize("layout", _VIT_WRITERS)
def test_vit(layout, target, tmp_path):
    model = drawn(timm.create_model("vit_tiny_patch16_224", num_classes=5, **TIMM))
    path = getattr(layouts, f"write_{layout}")(tmp_path / "weights", model.state_dict())
    assert_same(loaded(target, path), timm_tokens(model))


OTHERS = [
    ("beit", "beit_base_patch16_224", "mmseg BEiT"),
    ("beit", "beit_base_patch16_224", "timm BEiT"),
    ("beit", "beitv2_base_patch16_224", "mmseg BEiT"),
    ("beit_pretraining", "beit_base_patch16_224", "mmseg BEiT"),
    ("beit_pretraining", "beit_base_patch16_224", "timm BEiT"),
    ("mmpretrain", "beit_base_patch16_224", "timm BEiT"),
    ("mmpretrain", "vit_small_patch14_dinov2", "timm DINOv2"),
    ("dinov2", "vit_small_patch14_dinov2", "timm DINOv2"),
    ("dinov2", "vit_small_patch14_reg4_dinov2", "timm DINOv2 reg4"),
    ("dinov2_gated", "vit_giant_patch14_reg4_dinov2", "timm DINOv2 gated"),
    ("dinov3", "vit_small_patch16_dinov3", "timm DINOv3"),
    ("dinov3", "vit_small_patch16_dinov3_qkvb", "timm DINOv3 qkvb"),
    ("dinov3", "vit_small_plus_patch16_dinov3", "timm DINOv3 gated"),
]


@pytest.mark.parametrize(("layout", "name", "target"), OTHERS)
def test_other_plain_transformers(layout, name, target, tmp_path):
    ratio = dict(mlp_ratio=6) if "giant" in name else {}  # as transformers rounds it
    model = drawn(timm.create_model(name, num_classes=0, **TIMM, **ratio))
    state = dict(model.state_dict())
    if layout == "beit_pretraining":  # one table for all blocks
        tables = [n for n in state if n.endswith("_bias_table")]
        state.update({n: state[tables[0]] for n in tables})
        model.load_state_dict(state)
    path = getattr(layouts, f"write_{layout}")(tmp_path / "weights", state)
    assert_same(loaded(target, path), timm_tokens(model))


@pytest.mark.parametrize("target", ["mmseg Swin", "timm Swin"])
@pytest.mark.parametrize("layout", ["timm", "timm_safetensors", "swin"])
def test_swin(layout, target, tmp_path):
    model = drawn(timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **SWIN))
    path = getattr(layouts, f"write_{layout}")(tmp_path / "weights", model.state_dict())
    with torch.no_grad():
        expected = model.layers(model.patch_embed(IMAGES))
    assert_same(loaded(target, path), expected, normalised=target == "mmseg Swin")


@pytest.mark.parametrize("layout", ["mit", "deit", "segmentor"])
def test_mit(layout, tmp_path):
    model = drawn(MODELS.build(ConfigDict(TARGETS["mmseg MiT"])))
    state = model.state_dict()
    write = layouts.write_mit if layout == "mit" else layouts.write_deit
    state = layouts.prefixed("backbone.", state) if layout == "segmentor" else state
    with torch.no_grad():
        (expected,) = model(IMAGES)
    model = loaded("mmseg MiT", write(tmp_path / "weights", state))
    assert_same(model, expected.permute(0, 2, 3, 1))


_HF = dict(
    hidden_size=WIDTH,
    num_hidden_layers=DEPTH,
    num_attention_heads=2,
    intermediate_size=4 * WIDTH,
    image_size=SIZE,
    patch_size=PATCH,
    layer_norm_eps=1e-6,
)
_HF_SWIN = dict(
    image_size=SIZE, patch_size=4, embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=2
)
_HF_MIT = dict(
    num_encoder_blocks=2,
    depths=[1, 2],
    hidden_sizes=[8, 16],
    num_attention_heads=[1, 2],
    patch_sizes=[7, 3],
    strides=[4, 2],
    sr_ratios=[8, 1],
    mlp_ratios=[4, 4],
    layer_norm_eps=1e-6,
)
_BEIT = dict(use_relative_position_bias=True)
_SHARED = dict(use_shared_relative_position_bias=True, use_mask_token=True)
_GATED = dict(use_gated_mlp=True, num_register_tokens=4)
HUGGING_FACE = [
    ("ViT", "ViTModel", {}, "mmseg ViT"),
    ("ViT", "ViTForImageClassification", {}, "timm ViT"),
    ("ViT", "ViTModel", {}, "mmseg MAE"),
    ("ViTMAE", "ViTMAEForPreTraining", dict(mask_ratio=0.0), "mmseg MAE"),
    ("Beit", "BeitModel", _BEIT, "mmseg BEiT"),
    ("Beit", "BeitForImageClassification", _BEIT, "timm BEiT"),
    ("Beit", "BeitModel", _SHARED, "mmseg BEiT"),
    ("Dinov2", "Dinov2Model", {}, "timm DINOv2"),
    ("Dinov2WithRegisters", "Dinov2WithRegistersModel", {}, "timm DINOv2 reg4"),
    (
        "Dinov2WithRegisters",
        "Dinov2WithRegistersModel",
        dict(use_swiglu_ffn=True),
        "timm DINOv2 gated",
    ),
    ("DINOv3ViT", "DINOv3ViTModel", dict(num_register_tokens=4), "timm DINOv3 qkvb"),
    (
        "DINOv3ViT",
        "DINOv3ViTModel",
        {**_GATED, "query_bias": False, "value_bias": False, "hidden_act": "silu"},
        "timm DINOv3 gated",
    ),
    ("Swin", "SwinModel", _HF_SWIN, "mmseg Swin"),
    ("Swin", "SwinForImageClassification", _HF_SWIN, "timm Swin"),
    ("Segformer", "SegformerForSemanticSegmentation", _HF_MIT, "mmseg MiT"),
]


@torch.no_grad()
def transformers_tokens(model, target):
    """What the last block gives, (N, patches, width) or (N, H, W, width)."""
    options = {}
    if type(model).__name__.startswith("ViTMAE"):  # masks nothing, and keeps the patches in order
        options["noise"] = torch.arange((SIZE // PATCH) ** 2).repeat(2, 1).float()
    tokens = model(IMAGES, output_hidden_states=True, **options).hidden_states[-1]
    if tokens.ndim == 4:
        return tokens.permute(0, 2, 3, 1)
    patches = (SIZE // (2 * HEIGHT[target] if target in HEIGHT else PATCH)) ** 2
    return tokens[:, -patches:]


@pytest.mark.parametrize("write", ["write_published", "write_bin"])
@pytest.mark.parametrize(("kind", "name", "options", "target"), HUGGING_FACE)
def test_hugging_face(kind, name, options, target, write, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    own = options if "depths" in options else {**_HF, **options}
    config = getattr(transformers, f"{kind}Config")(**own)
    model = drawn(getattr(transformers, name)(config))
    path = getattr(layouts, write)(tmp_path / "weights", model)
    expected = transformers_tokens(model, target)
    assert_same(loaded(target, path), expected, normalised=target == "mmseg Swin")


@pytest.mark.parametrize(
    "content, message",
    [
        (lambda: {"a.weight": torch.zeros(2)}, "of .* weights"),
        (lambda: [1, 2], "no weights|not"),
        (lambda: {"state_dict": {}}, "no weights|not"),
    ],
)
def test_a_foreign_file_is_refused(content, message, tmp_path):
    torch.save(content(), tmp_path / "foreign.pth")
    with pytest.raises(CheckpointError, match=message) as error:
        loaded("mmseg ViT", tmp_path / "foreign.pth")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz", "a.pth"])
def test_an_unreadable_file_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"\x93not what it says")
    with pytest.raises(CheckpointError, match=name):
        loaded("mmseg ViT", tmp_path / name)


def test_a_model_with_more_in_its_blocks_is_refused(tmp_path):
    """DINOv2's LayerScale has no place in mmseg's ViT, which would compute something else."""
    model = drawn(timm.create_model("vit_small_patch14_dinov2", num_classes=0, **TIMM))
    path = layouts.write_dinov2(tmp_path / "weights", model.state_dict())
    with pytest.raises(CheckpointError, match=r"DINOv2.*ls1.*TIMMBackbone"):
        loaded("mmseg ViT", path)


def test_what_was_done_is_said(tmp_path, caplog):
    """Positions for another grid, a head and a decoder: resized, ignored, named."""
    larger = timm.create_model("vit_tiny_patch16_224", num_classes=5, **{**TIMM, "img_size": 48})
    path = layouts.write_mae(tmp_path / "weights", drawn(larger).state_dict())
    model = MODELS.build(ConfigDict(copy.deepcopy(TARGETS["timm ViT"])))
    lines = convert(read_weights(str(path)), model, "mae.pth").lines("mae.pth")
    text = "\n".join(lines)
    assert "converted from" in text and "resized" in text and "pos_embed" in text
    assert "decoder" in text and "mask token" in text


def test_every_layout_has_a_name_of_its_own():
    assert len({f.name for f in FORMATS}) == len(FORMATS)
