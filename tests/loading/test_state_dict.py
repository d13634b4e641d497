"""What loads, what is refused, and that nothing goes missing silently."""

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.runner import load_checkpoint
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules

import snella_seg.register  # noqa: F401
from snella_seg.inject import is_adapter_key, list_adapters
from snella_seg.loading import CheckpointError

register_all_modules()

VIT = dict(
    type="VisionTransformer",
    img_size=(32, 32),
    patch_size=8,
    embed_dims=16,
    num_layers=2,
    num_heads=2,
    out_indices=(0, 1),
    patch_bias=True,
)
SWIN = dict(
    type="SwinTransformer",
    pretrain_img_size=32,
    embed_dims=8,
    depths=[1, 1],
    num_heads=[1, 2],
    strides=(4, 2),
    out_indices=(0, 1),
    window_size=4,
)
TIMM_VIT = dict(
    type="TIMMBackbone",
    model_name="vit_tiny_patch16_224",
    pretrained=False,
    embed_dim=16,
    depth=2,
    num_heads=2,
    patch_size=8,
    img_size=32,
    dynamic_img_size=True,
    out_indices=(0, 1),
)


def wrap(inner, init=None, **options):
    inner = ConfigDict(copy.deepcopy(inner))
    if init is not None:
        inner["init_cfg"] = dict(type="Pretrained", checkpoint=str(init))
    options = {"adapter": dict(rank=4), **options}
    return MODELS.build(ConfigDict(type="SnellaBackbone", backbone=inner, **options))


def stock(inner, seed=7, **changes):
    torch.manual_seed(seed)
    model = MODELS.build(ConfigDict(copy.deepcopy({**inner, **changes})))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def base_of(wrapped):
    return {k: v for k, v in wrapped.backbone.state_dict().items() if not is_adapter_key(k)}


def assert_base_is(wrapped, model):
    expected = model.state_dict()
    found = base_of(wrapped)
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.fixture
def save(tmp_path):
    def write(state, **extra):
        path = tmp_path / "weights.pth"
        torch.save({"state_dict": state, **extra} if extra else state, path)
        return path

    return write


@pytest.mark.parametrize("inner", [VIT, SWIN], ids=["vit", "swin"])
def test_a_complete_load_says_nothing(inner, save, capsys):
    wrapped = wrap(inner, save(stock(inner).state_dict()))
    wrapped.init_weights()
    assert "missing" not in capsys.readouterr().out


@pytest.mark.parametrize("inner", [VIT, SWIN], ids=["vit", "swin"])
@pytest.mark.parametrize("form", ["bare", "segmentor", "wrapped segmentor"])
def test_base_weights_load_from_every_stock_form(inner, form, save):
    model = stock(inner)
    prefix = {"bare": "", "segmentor": "backbone.", "wrapped segmentor": "backbone.backbone."}[form]
    state = {prefix + k: v for k, v in model.state_dict().items()}
    if prefix:
        state["decode_head.conv_seg.weight"] = torch.zeros(3)
    wrapped = wrap(inner, save(state, meta={}) if prefix else save(state))
    wrapped.init_weights()
    assert_base_is(wrapped, model)


def test_the_older_spelling_pretrained(save):
    model = stock(VIT)
    path = save(model.state_dict())
    for wrapped in (wrap(VIT, pretrained=str(path)), wrap({**VIT, "pretrained": str(path)})):
        wrapped.init_weights()
        assert_base_is(wrapped, model)


@pytest.mark.parametrize("inner", [VIT, TIMM_VIT], ids=["mmseg", "timm"])
@pytest.mark.parametrize("pretrain_size", [32, 64])
def test_timm_names_load_into_both_vits(inner, pretrain_size, save):
    timm = pytest.importorskip("timm")
    model = timm.create_model(
        "vit_tiny_patch16_224",
        embed_dim=16,
        depth=2,
        num_heads=2,
        patch_size=8,
        img_size=pretrain_size,
        num_classes=5,
    )
    wrapped = wrap(inner, save(model.state_dict()))
    wrapped.init_weights()
    base = {k.replace("timm_model.model.", ""): v for k, v in base_of(wrapped).items()}
    name = "layers.1.ffn.layers.1.weight" if inner is VIT else "blocks.1.mlp.fc2.weight"
    assert torch.equal(base[name], model.blocks[1].mlp.fc2.weight)
    assert torch.equal(base["cls_token"], model.cls_token)
    assert base["pos_embed"].shape[1] == 17
    if pretrain_size == 32:
        assert torch.equal(base["pos_embed"], model.pos_embed)
    else:
        assert base["pos_embed"].std() > 0.005  # resized values, not the zeros of a fresh model


def test_bias_tables_resize_as_stock(save):
    path = save(stock(SWIN, window_size=2).state_dict())
    # index buffers of the other window size do not fit, so pretrained files leave them out
    state = {k: v for k, v in torch.load(path).items() if "index" not in k}
    init_cfg = dict(type="Pretrained", checkpoint=str(save(state)))
    expected = MODELS.build(ConfigDict(copy.deepcopy(SWIN), init_cfg=init_cfg))
    expected.init_weights()
    wrapped = wrap(SWIN, path)
    wrapped.init_weights()
    assert_base_is(wrapped, expected)


def test_a_missing_frozen_weight_is_an_error_that_lists_it(save):
    state = stock(VIT).state_dict()
    del state["layers.1.attn.attn.in_proj_weight"], state["layers.0.ln1.bias"]
    wrapped = wrap(VIT, save(state))
    before = copy.deepcopy(base_of(wrapped))
    with pytest.raises(CheckpointError, match=r"2 of .*layers.0.ln1.bias.*in_proj_weight"):
        wrapped.init_weights()
    assert all(torch.equal(v, before[k]) for k, v in base_of(wrapped).items())


def test_a_weight_that_is_trained_may_be_missing(save):
    state = stock(SWIN).state_dict()
    state = {k: v for k, v in state.items() if not k.startswith("norm")}
    with pytest.raises(CheckpointError, match=r"norm0.weight.*trainable"):
        wrap(SWIN, save(state), trainable=["cls_token"]).init_weights()
    wrap(SWIN, save(state), trainable=["norm?"]).init_weights()
    automatic = wrap(SWIN, save(state))
    automatic.init_weights()
    trained = [n for n, p in automatic.named_parameters() if p.requires_grad]
    assert [n for n in trained if not is_adapter_key(n)] == [
        f"backbone.norm{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")
    ]


def test_foreign_and_misshapen_weights_are_refused(save):
    with pytest.raises(CheckpointError, match="incomplete load of the frozen VisionTransformer"):
        wrap(VIT, save({"conv1.weight": torch.zeros(3)})).init_weights()
    with pytest.raises(CheckpointError, match=r"\(1, 1, 32\) instead of \(1, 1, 16\)"):
        wrap(VIT, save(stock(VIT, embed_dims=32).state_dict())).init_weights()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        wrap(VIT, tmp_path / "nowhere.pth").init_weights()


@pytest.fixture
def messages(monkeypatch):
    """What the loading code logs."""
    found = []
    for module in ("base_weights", "completeness"):
        monkeypatch.setattr(
            f"snella_seg.loading.{module}.print_log", lambda text, *_, **__: found.append(text)
        )
    return found


def test_a_random_base_is_announced(messages):
    wrapped = wrap(VIT)
    factors = [a.in_factors.clone() for a in list_adapters(wrapped).values()]
    wrapped.init_weights()
    assert "RANDOM" in messages[0]
    assert base_of(wrapped)["layers.0.ffn.layers.1.weight"].std() == pytest.approx(0.02, rel=0.3)
    after = [a.in_factors for a in list_adapters(wrapped).values()]
    assert all(torch.equal(a, b) for a, b in zip(factors, after, strict=True))


def test_a_dropped_patch_bias_is_announced(save, messages):
    path = save(stock(VIT).state_dict())
    wrap({**VIT, "patch_bias": False}, path).init_weights()
    assert len(messages) == 1 and "patch_bias=True" in messages[0]


class Segmentor(torch.nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone


def loaders():
    def by_mmengine(model, state, path):
        torch.save({"state_dict": state}, path)
        load_checkpoint(model, str(path), map_location="cpu")

    def by_torch(model, state, path):
        model.load_state_dict(state, strict=False)

    return pytest.mark.parametrize("load", [by_mmengine, by_torch])


@loaders()
def test_a_whole_stock_segmentor_loads_into_the_wrapped_one(load, tmp_path):
    model = stock(VIT)
    state = Segmentor(model).state_dict()
    target = Segmentor(wrap(VIT))
    load(target, state, tmp_path / "x.pth")
    assert_base_is(target.backbone, model)


@loaders()
def test_own_checkpoints_round_trip_with_sparsity(load, tmp_path):
    source, target = Segmentor(wrap(SWIN)), Segmentor(wrap(SWIN))
    for i, adapter in enumerate(list_adapters(source).values()):
        adapter.set_num_nonzero(3 + i)
    load(target, source.state_dict(), tmp_path / "x.pth")
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key
    assert [a.num_nonzero for a in list_adapters(target).values()] == list(range(3, 15))


def nan_factors(state):
    state["backbone.backbone.layers.0.attn.attn.adapters.q.in_factors"][0, 0, 0] = float("nan")


def missing_factors(state):
    del state["backbone.backbone.layers.1.ffn.layers.1.adapters.fc2.out_factors"]


def other_rank(state):
    key = "backbone.backbone.layers.1.ffn.layers.1.adapters.fc2.out_factors"
    state[key] = torch.zeros(2, 16, 4)


def extra_factors(state):
    state["backbone.backbone.patch_embed.projection.adapters.x.in_factors"] = torch.zeros(1)


def other_base(state):
    state["backbone.backbone.cls_token"] = torch.zeros(1, 1, 8)


def no_base(state):
    for key in [k for k in state if not is_adapter_key(k)]:
        del state[key]


@loaders()
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (nan_factors, "NaN or infinite"),
        (missing_factors, "misses adapter values.*fc2.out_factors"),
        (other_rank, r"\(2, 16, 4\) instead of \(2, 16, 2\)"),
        (extra_factors, "this model lacks"),
        (other_base, r"cls_token \(1, 1, 8\) instead of"),
        (no_base, "incomplete load of the frozen"),
    ],
)
def test_damaged_checkpoints_are_refused(load, damage, message, tmp_path):
    state = {k: v.clone() for k, v in Segmentor(wrap(VIT)).state_dict().items()}
    damage(state)
    with pytest.raises(CheckpointError, match=message):
        load(Segmentor(wrap(VIT)), state, tmp_path / "x.pth")
