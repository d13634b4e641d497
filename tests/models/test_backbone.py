"""SnellaBackbone around mmseg's ViT and Swin and timm's, at toy size."""

import copy
import gc
import weakref

import pytest
import torch
from helpers import import_peft
from mmengine.config import ConfigDict
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules
from torch.utils.checkpoint import checkpoint

import snella_seg.register  # noqa: F401
from snella_seg.inject import METHODS, adapters_disabled, is_adapter_key, list_adapters
from snella_seg.models import backbone as backbone_module

register_all_modules()

BACKBONES = {
    "vit": dict(
        type="VisionTransformer",
        img_size=(32, 32),
        patch_size=8,
        embed_dims=16,
        num_layers=2,
        num_heads=2,
        out_indices=(0, 1),
    ),
    "swin": dict(
        type="SwinTransformer",
        pretrain_img_size=32,
        embed_dims=8,
        depths=[2, 2],
        num_heads=[1, 2],
        strides=(4, 2),
        out_indices=(0, 1),
        window_size=4,
        drop_path_rate=0.2,
    ),
    "timm_vit": dict(
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
    ),
    "timm_swin": dict(
        type="TIMMBackbone",
        model_name="swin_tiny_patch4_window7_224",
        pretrained=False,
        embed_dim=8,
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 4, 8),
        img_size=64,
        strict_img_size=False,
    ),
    "beit": dict(
        type="BEiT",
        img_size=(32, 32),
        patch_size=8,
        embed_dims=16,
        num_layers=2,
        num_heads=2,
        out_indices=(0, 1),
        init_values=0.1,
    ),
}
BACKBONES["mae"] = {**BACKBONES["beit"], "type": "MAE"}
SIZES = {"timm_swin": 64}
NUM_MATRICES = {"vit": 12, "swin": 24, "timm_vit": 12, "timm_swin": 24, "beit": 12, "mae": 12}


def wrap(name, inner=None, **options):
    torch.manual_seed(0)
    options = {"adapter": dict(rank=4), **options}
    config = ConfigDict(copy.deepcopy({**BACKBONES[name], **(inner or {})}))
    return MODELS.build(ConfigDict(type="SnellaBackbone", backbone=config, **options))


def build_stock(name, base, training=False, **changes):
    model = MODELS.build(ConfigDict(copy.deepcopy({**BACKBONES[name], **changes})))
    model.train(training)  # mmseg's returns None
    model.load_state_dict(base)  # strict: the names are the stock ones
    return model


def base_of(wrapped):
    return {k: v for k, v in wrapped.backbone.state_dict().items() if not is_adapter_key(k)}


def image(name, batch=2):
    size = SIZES.get(name, 32)
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(5))


def same(first, second, **tolerance):
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("name", BACKBONES)
def test_disabled_it_is_the_stock_backbone(name):
    wrapped = wrap(name).eval()
    x = image(name)
    expected = build_stock(name, base_of(wrapped))(x)
    if name == "timm_swin":
        expected = [out.permute(0, 3, 1, 2) for out in expected]
    with adapters_disabled(wrapped):
        same(wrapped(x), expected, atol=1e-5, rtol=1e-5)
    assert any(not torch.allclose(a, b) for a, b in zip(wrapped(x), expected, strict=True))


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("merged", [False, True])
def test_each_matrix_acts_on_the_output(name, merged):
    backbone = wrap(name).eval()
    adapters = list_adapters(backbone)
    assert len(adapters) == NUM_MATRICES[name]
    x = image(name)
    with torch.set_grad_enabled(not merged):
        before = backbone(x)
        for matrix, adapter in adapters.items():
            with torch.no_grad():
                kept = adapter.in_factors.clone()
                adapter.in_factors.normal_(std=3.0)
            moved = max((a - b).abs().max() for a, b in zip(before, backbone(x), strict=True))
            assert moved > 1e-5, matrix
            with torch.no_grad():
                adapter.in_factors.copy_(kept)
        same(backbone(x), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", BACKBONES)
def test_training_and_inference_agree_and_gradients_arrive(name):
    backbone = wrap(name, trainable=["cls_token"]).eval()
    x = image(name)
    live = backbone(x)
    with torch.no_grad():
        same(live, backbone(x), atol=1e-5, rtol=1e-5)
    sum(out.square().mean() for out in live).backward()
    for key, parameter in backbone.named_parameters():
        trained = is_adapter_key(key) or key.endswith("cls_token")
        assert parameter.requires_grad == trained, key
        assert (parameter.grad is not None) == trained, key
    factors = [f for a in list_adapters(backbone).values() for f in a.factors]
    assert all(f.grad.abs().max() > 0 for f in factors)


def test_a_stock_model_in_training_mode_drops_as_stock():
    wrapped = wrap("swin", dict(drop_path_rate=0.5)).train()
    stock = build_stock("swin", base_of(wrapped), training=True, drop_path_rate=0.5)
    with adapters_disabled(wrapped):
        outputs = []
        for model in (wrapped, stock):
            torch.manual_seed(3)
            outputs.append(model(image("swin")))
    same(*outputs, atol=1e-6, rtol=1e-5)


def test_swins_frozen_stages_do_not_freeze_adapters():
    backbone = wrap("swin", dict(frozen_stages=2), trainable=["norm1"])
    trained = {n for n, p in backbone.named_parameters() if p.requires_grad}
    backbone.train()
    backbone.eval()
    backbone.train()
    assert {n for n, p in backbone.named_parameters() if p.requires_grad} == trained
    assert any(is_adapter_key(n) for n in trained) and "backbone.norm1.weight" in trained
    assert not backbone.backbone.patch_embed.training  # what stock puts into eval mode stays so


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_inner_checkpointing_gives_the_same_gradients(name):
    grads = []
    for with_cp in (False, True):
        backbone = wrap(name, dict(with_cp=with_cp, drop_path_rate=0.0))
        backbone.train()
        sum(out.square().mean() for out in backbone(image(name))).backward()
        grads.append([a.in_factors.grad for a in list_adapters(backbone).values()])
    same(*grads)


@pytest.mark.parametrize("name", ["vit", "swin", "timm_vit", "beit", "mae"])
def test_cpu_autocast_keeps_the_deltas(name):
    backbone = wrap(name).eval()
    with torch.no_grad():
        for adapter in list_adapters(backbone).values():
            for factor in adapter.factors:
                factor.mul_(3.0)
    x = image(name)
    with torch.no_grad():
        full = backbone(x)
        with adapters_disabled(backbone):
            base = backbone(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = backbone(x)
            with adapters_disabled(backbone):
                half_base = backbone(x)
    change = torch.cat([(a - b).flatten() for a, b in zip(full, base, strict=True)])
    half_change = torch.cat(
        [(a.float() - b.float()).flatten() for a, b in zip(half, half_base, strict=True)]
    )
    assert torch.nn.functional.cosine_similarity(change, half_change, dim=0) > 0.9


@pytest.mark.parametrize("name", ["vit", "swin", "beit", "mae"])
def test_fused_attention_is_switchable_and_equal(name, monkeypatch):
    """On two images, which share the mask of shifted windows; with gradients of all kinds."""
    calls = []
    fused_attention = torch.nn.functional.scaled_dot_product_attention

    def counted(*args, **options):
        calls.append(args)
        return fused_attention(*args, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    results = []
    for fused in (True, False):
        calls.clear()
        trainable = [] if name == "vit" else ["*.relative_position_bias_table"]
        inner = dict(drop_path_rate=0.0) if name == "swin" else {}
        backbone = wrap(name, inner, fused_attention=fused, trainable=trainable).train()
        for key, table in backbone.named_parameters():
            if key.endswith("bias_table"):
                torch.nn.init.normal_(table, generator=torch.Generator().manual_seed(1))
        outputs = backbone(image(name))
        sum(out.square().mean() for out in outputs).backward()
        grads = [p.grad for p in backbone.parameters() if p.grad is not None]
        assert len(calls) == (4 if name == "swin" else 2) * fused
        results.append([*outputs, *grads])
    same(*results, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("name", ["vit", "swin", "timm_vit", "beit"])
@pytest.mark.parametrize("half", [False, True])
def test_recomputing_activations_saves_memory_and_no_bit_changes(name, half):
    results, sizes = [], []
    for recompute in (False, True):
        backbone = wrap(name, dict(drop_path_rate=0.0), recompute=recompute).train()
        kept = {}

        def pack(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=half),
        ):
            outputs = backbone(image(name))
            loss = sum(out.float().square().mean() for out in outputs)
        loss.backward()
        grads = [p.grad for p in backbone.parameters() if p.grad is not None]
        results.append([*outputs, *grads])
        sizes.append(sum(kept.values()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert sizes[1] < 0.9 * sizes[0]


def test_recomputation_leaves_checkpointing_its_effect():
    """Non-reentrant checkpointing: nothing of a block is kept by other ways than saved tensors."""
    grads, alive = [], []
    for checkpointing in (False, True):
        backbone = wrap("timm_vit").train()
        seen = []

        def see(module, inputs, output, seen=seen):
            seen.append(weakref.ref(inputs[0]))

        for module in backbone.modules():
            if isinstance(module, torch.nn.GELU):
                module.register_forward_hook(see)
        x = image("timm_vit")
        if checkpointing:
            outputs = checkpoint(backbone, x, use_reentrant=False)
        else:
            outputs = backbone(x)
        gc.collect()
        alive.append(sum(ref() is not None for ref in seen))
        sum(out.square().mean() for out in outputs).backward()
        grads.append([a.in_factors.grad for a in list_adapters(backbone).values()])
    same(*grads)
    assert alive == [2, 0]


def test_recomputation_works_with_inner_checkpointing_and_drop_path():
    adapter = dict(rank=4, dropout=0.2, drop_path=0.3)
    grads = []
    for with_cp in (False, True):
        backbone = wrap("vit", dict(with_cp=with_cp), adapter=adapter).train()
        torch.manual_seed(5)
        sum(out.square().mean() for out in backbone(image("vit"))).backward()
        grads.append([a.in_factors.grad for a in list_adapters(backbone).values()])
    same(*grads)


def test_dropout_and_drop_path_end_with_training():
    adapter = dict(rank=4, dropout=0.5, drop_path=0.5)
    dropping, plain = wrap("vit", adapter=adapter), wrap("vit")
    x = image("vit")
    for training in (True, False):
        outputs = [backbone.train(training)(x)[-1] for backbone in (dropping, plain)]
        assert torch.allclose(*outputs, atol=1e-7) != training


def test_targets_can_be_empty_for_a_frozen_baseline():
    backbone = wrap("vit", targets=[])
    trained = [n for n, p in backbone.named_parameters() if p.requires_grad]
    assert trained == ["backbone.cls_token"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(backbone=dict(type="SnellaBackbone", backbone={})), ValueError, "wraps a Snella"),
        (dict(backbone=None), ValueError, "config of a stock backbone"),
        (dict(embed_dims=16, depths=[2]), TypeError, "depths, embed_dims.*_delete_=True"),
        (dict(targets=["layers.9.*"]), ValueError, "matches no matrix.*near"),
        (dict(adapter=dict(rnk=4)), ValueError, "'rnk'; near matches: rank"),
        (dict(trainable=["cls_tokens"]), ValueError, "near matches: cls_token"),
        (
            dict(pretrained="a.pth", init_cfg=dict(type="Pretrained", checkpoint="b.pth")),
            ValueError,
            "named twice",
        ),
    ],
)
def test_bad_configs_say_why(options, error, message):
    config = {"type": "SnellaBackbone", "backbone": BACKBONES["vit"], **options}
    with pytest.raises(error, match=message):
        MODELS.build(ConfigDict(copy.deepcopy(config)))


@pytest.mark.parametrize("method", ["frozen", "full", "bitfit", "lora", "snella"])
@pytest.mark.parametrize("name", ["vit", "swin", "beit"])
def test_attention_is_fused_for_every_method(method, name, monkeypatch):
    calls = []
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *args, **options: calls.append(1) or attend(*args, **options),
    )
    adapter = dict(rank=4) if METHODS[method].adapts else None
    for fused in (True, False):
        calls.clear()
        wrap(name, method=method, adapter=adapter, fused_attention=fused).train()(image(name))
        assert bool(calls) == fused


def test_the_modules_are_looked_through_once_per_switch_of_mode(monkeypatch):
    backbone = wrap("vit", dict(with_cp=True)).train()
    looks = []
    look = backbone_module._checkpoints_blocks
    monkeypatch.setattr(
        backbone_module, "_checkpoints_blocks", lambda b: looks.append(1) or look(b)
    )
    for _ in range(3):
        sum(out.square().mean() for out in backbone(image("vit"))).backward()
    assert not looks
    for module in backbone.modules():
        if hasattr(module, "with_cp"):
            module.with_cp = False
    backbone.train()
    assert looks == [1] and not backbone._checkpoints_blocks


def test_timm_swin_v2_trains_all_its_adapters():
    """Its stochastic depth leaves whole branches out of a small batch in training; in eval, and
    with its norms not at the zero that they start from, every adapter gets a gradient."""
    inner = dict(
        type="TIMMBackbone",
        model_name="swinv2_tiny_window8_256",
        pretrained=False,
        embed_dim=8,
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 2, 4),
        img_size=64,
        strict_img_size=False,
    )
    config = ConfigDict(type="SnellaBackbone", adapter=dict(rank=4), backbone=inner)
    torch.manual_seed(0)
    backbone = MODELS.build(config).eval()
    for name, parameter in backbone.named_parameters():
        if name.endswith(("norm1.weight", "norm2.weight")):
            torch.nn.init.ones_(parameter)
    outputs = backbone(torch.randn(1, 3, 128, 128))
    sum(out.square().mean() for out in outputs).backward()
    adapters = list_adapters(backbone)
    assert len(adapters) == 30
    assert all(f.grad.abs().max() > 0 for a in adapters.values() for f in a.factors)


@pytest.mark.parametrize("name", BACKBONES)
def test_models_are_copied_and_saved_whole(name, tmp_path):
    backbone = wrap(name).eval()
    torch.save(backbone, tmp_path / "model.pth")
    twins = copy.deepcopy(backbone), torch.load(tmp_path / "model.pth", weights_only=False)
    with torch.no_grad():
        for twin in twins:
            same(twin(image(name)), backbone(image(name)), rtol=0, atol=0)
            twin.load_state_dict(backbone.state_dict())


def test_dora_starts_from_the_loaded_weights(tmp_path):
    """Its magnitudes are the norms of the pretrained weights, so at the start nothing changes."""
    import_peft()
    inner = dict(type="VisionTransformer", img_size=32, patch_size=16, embed_dims=16, num_layers=2)
    inner |= dict(num_heads=2, mlp_ratio=2, out_indices=(1,))
    torch.manual_seed(0)
    base = MODELS.build(inner)
    torch.save(base.state_dict(), tmp_path / "base.pth")
    options = dict(type="peft", config="LoraConfig", r=4, use_dora=True)
    config = dict(type="SnellaBackbone", method=options, backbone=inner)
    wrapped = MODELS.build(dict(config, base_checkpoint=str(tmp_path / "base.pth")))
    wrapped.init_weights()
    x = torch.randn(1, 3, 32, 32)
    wrapped.eval(), base.eval()
    for found, expected in zip(wrapped(x), base(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    factors = [p for adapter in list_adapters(wrapped).values() for p in adapter.factors]
    with torch.no_grad():
        for factor in factors:
            factor.add_(0.1)
    kept = [factor.clone() for factor in factors]
    wrapped.init_weights()  # what was trained is not begun anew
    assert all(map(torch.equal, factors, kept))
