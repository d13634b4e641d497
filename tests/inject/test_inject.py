import pytest
import torch
from torch import nn

from snella_seg.inject import (
    adapter_keys,
    add_adapters,
    base_state,
    find_matrices,
    freeze_base,
    is_adapter_key,
    list_adapters,
    select_matrices,
)


def swin_like():
    model = nn.Module()
    model.norm0 = nn.LayerNorm(8)
    model.blocks = nn.ModuleList()
    for _ in range(2):
        block = nn.Module()
        block.attn = nn.Module()
        block.attn.w_msa = nn.Module()
        block.attn.w_msa.qkv = nn.Linear(8, 24)
        block.attn.w_msa.proj = nn.Linear(8, 8)
        block.mlp = nn.Module()
        block.mlp.fc1, block.mlp.fc2 = nn.Linear(8, 32), nn.Linear(32, 8)
        model.blocks.append(block)
    model.reduction = nn.Linear(32, 16, bias=False)
    return model


def names(model, targets):
    return [m.name for m in select_matrices(model, targets)]


def test_auto_takes_the_encoder_and_splits_qkv():
    chosen = select_matrices(swin_like())
    assert [m.kind for m in chosen] == ["q", "k", "v", "proj", "fc1", "fc2"] * 2
    q, k, v = chosen[:3]
    assert [(m.start, m.stop, m.in_features) for m in (q, k, v)] == [
        (0, 8, 8),
        (8, 16, 8),
        (16, 24, 8),
    ]
    assert len(find_matrices(swin_like())) == 13  # the reduction is found, but not automatic


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["q"], ["blocks.0.attn.w_msa.qkv.q", "blocks.1.attn.w_msa.qkv.q"]),
        ("blocks.1.mlp.*", ["blocks.1.mlp.fc1.fc1", "blocks.1.mlp.fc2.fc2"]),
        (["reduction"], ["reduction.reduction"]),
        (["blocks.0.attn.w_msa.qkv.[qv]"], [f"blocks.0.attn.w_msa.qkv.{k}" for k in "qv"]),
        (["blocks.0.mlp.fc2", "fc2"], [f"blocks.{i}.mlp.fc2.fc2" for i in (0, 1)]),
        ([], []),
    ],
)
def test_patterns(targets, expected):
    assert names(swin_like(), targets) == expected


def test_any_pattern_that_matches_nothing_is_an_error_with_near_matches():
    with pytest.raises(ValueError, match=r"'blocks.0.mlp.fc3' matches no matrix.*blocks.0.mlp.fc"):
        names(swin_like(), ["q", "blocks.0.mlp.fc3"])
    with pytest.raises(ValueError, match="targets='auto' knows no encoder layer"):
        names(nn.Sequential(nn.Linear(2, 2)), "auto")


def test_wrong_options_leave_the_model_alone():
    for options in (dict(ranks=4), dict(rank=3), dict(kernel="cubic")):
        model = swin_like()
        with pytest.raises(ValueError):
            add_adapters(model, options)
        assert not list_adapters(model) and type(model.reduction) is nn.Linear
    with pytest.raises(ValueError, match="'ranks'; near matches: rank"):
        add_adapters(swin_like(), dict(ranks=4))


def test_adding_twice_is_refused():
    model = swin_like()
    add_adapters(model, dict(rank=2))
    with pytest.raises(ValueError, match="already"):
        add_adapters(model, dict(rank=2))


def test_freezing_leaves_adapters_and_what_is_named():
    model = swin_like()
    add_adapters(model, dict(rank=2))
    freeze_base(model, ["norm?", "blocks.0.mlp.fc1.bias", "cls_token"])
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n in trained if not is_adapter_key(n)} == {
        "norm0.weight",
        "norm0.bias",
        "blocks.0.mlp.fc1.bias",
    }
    assert {n for n, _ in model.named_parameters() if is_adapter_key(n)} <= trained
    with pytest.raises(ValueError, match=r"'norm9' matches no parameter.*norm0"):
        freeze_base(model, ["norm9"])


def test_partly_adapted_packed_weight():
    torch.manual_seed(0)
    model = swin_like()
    layer = model.blocks[0].attn.w_msa.qkv
    x = torch.randn(3, 8)
    before = layer(x)
    adapters = add_adapters(model, dict(rank=2), ["k"])
    nn.init.normal_(adapters["blocks.0.attn.w_msa.qkv.k"].in_factors)
    changed = (model.blocks[0].attn.w_msa.qkv(x) - before).abs().amax(0) > 1e-6
    assert changed[8:16].any() and not changed[:8].any() and not changed[16:].any()


def test_a_foreign_module_may_be_called_adapters():
    """What belongs to us is asked of the modules, not of names."""
    model = swin_like()
    model.adapters = nn.ModuleDict({"0": nn.Linear(8, 8)})
    add_adapters(model, dict(rank=2), ["q"])
    freeze_base(model, [])
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert "adapters.0.weight" not in trained and trained < adapter_keys(model)
    assert "adapters.0.weight" in base_state(model)
    assert adapter_keys(model) | set(base_state(model)) == set(model.state_dict())
    freeze_base(model, ["adapters.0"])
    assert model.adapters["0"].weight.requires_grad
