"""The whole life of an adapter on linear, packed attention and Swin-like layers."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from snella_seg.inject import (
    adapters_disabled,
    add_adapters,
    attach_adapters,
    list_adapters,
    make_adapters,
)
from snella_seg.layers import AdaptedMultiheadAttention, FusedMultiheadAttention, SnellaAdapter
from snella_seg.layers import module as adapted_layers


class Block(nn.Module):
    """Names as in mmseg's ViT, small enough for double precision."""

    def __init__(self, batch_first=True):
        super().__init__()
        self.attn = nn.Module()
        self.attn.attn = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.ffn = nn.Module()
        self.ffn.layers = nn.Sequential(
            nn.Sequential(nn.Linear(8, 16), nn.GELU()), nn.Linear(16, 8)
        )

    def forward(self, x, **options):
        x = x + self.attn.attn(x, x, x, **options)[0]
        return x + self.ffn.layers(x)


def adapted(batch_first=True, seed=0, **adapter):
    torch.manual_seed(seed)
    block = Block(batch_first).double()
    stock = copy.deepcopy(block)
    adapters = add_adapters(block, dict(rank=4, **adapter))
    for a in adapters.values():
        a.double()
        for factor in a.factors:
            nn.init.normal_(factor)
    return stock, block, adapters


def merged(block):
    """The stock module with every delta added to its weight by hand."""
    plain = Block(block.attn.attn.batch_first).double()
    state = {k: v for k, v in block.state_dict().items() if "adapters" not in k}
    a = list_adapters(block)
    qkv = [a[f"attn.attn.{k}"].delta_weight() for k in "qkv"]
    state["attn.attn.in_proj_weight"] = state["attn.attn.in_proj_weight"] + torch.cat(qkv)
    for module, kind in (
        ("attn.attn.out_proj", "proj"),
        ("ffn.layers.0.0", "fc1"),
        ("ffn.layers.1", "fc2"),
    ):
        key = f"{module}.weight"
        state[key] = state[key] + a[f"{module}.{kind}"].delta_weight()
    plain.load_state_dict(state)
    return plain


X = torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
MASK = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
PADDING = torch.tensor([[0, 0, 0, 0, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)


@pytest.mark.parametrize("kernel", ["mixed", "distance", "linear"])
@pytest.mark.parametrize("mode", ["train", "eval", "eval without gradients"])
def test_equals_the_stock_layer_with_merged_weights(kernel, mode):
    _, block, _ = adapted(kernel=kernel, initial_sparsity=0.3)
    block.train(mode == "train")
    with torch.set_grad_enabled("without" not in mode):
        torch.testing.assert_close(block(X), merged(block)(X))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("returns_weights", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(attn_mask=MASK),
        dict(attn_mask=MASK.double() * -2.0),
        dict(attn_mask=MASK.expand(6, 5, 5)),
        dict(key_padding_mask=PADDING),
        dict(attn_mask=MASK, key_padding_mask=PADDING),
        dict(need_weights=False),
    ],
)
def test_attention_takes_all_masks(batch_first, returns_weights, options):
    _, block, _ = adapted(batch_first)
    block.attn.attn.returns_weights = returns_weights
    x = X if batch_first else X.transpose(0, 1)
    torch.testing.assert_close(block(x, **options), merged(block)(x, **options))


def test_attention_weights_and_cross_attention():
    _, block, _ = adapted()
    attention, plain = block.attn.attn, merged(block).attn.attn
    keys = X.flip(1)[:, :4].contiguous()
    for options in ({}, dict(average_attn_weights=False)):
        for found, expected in zip(
            attention(X, keys, keys, **options), plain(X, keys, keys, **options), strict=True
        ):
            torch.testing.assert_close(found, expected)


def test_detached_keys_do_not_pass_gradients():
    _, block, _ = adapted()
    grads = []
    for module in (block, merged(block)):
        x = X.clone().requires_grad_()
        module.attn.attn(x, x.detach(), x.detach())[0].square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


def test_start_disable_enable_and_stock_names():
    stock, block, adapters = adapted()
    assert len(adapters) == 6
    assert {k for k in block.state_dict() if "adapters" not in k} == set(stock.state_dict())
    assert not torch.allclose(block(X), stock(X))
    with adapters_disabled(block):
        assert torch.equal(block(X), stock(X)) or torch.allclose(block(X), stock(X), atol=1e-14)
        assert block.ffn.layers[1].weight is block.ffn.layers[1].base_weight
    assert not torch.allclose(block(X), stock(X))


def test_gradients_reach_every_learnable_value():
    _, block, adapters = adapted(initial_sparsity=0.2)
    block(X).square().sum().backward()
    for name, adapter in adapters.items():
        for parameter in adapter.parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_weight_that_is_read_is_adapted():
    _, block, _ = adapted()
    layer = block.ffn.layers[1]
    x = torch.randn(4, 16, dtype=torch.float64)
    torch.testing.assert_close(nn.functional.linear(x, layer.weight, layer.bias), layer(x))
    nn.functional.linear(x, layer.weight).sum().backward()
    assert layer.adapters["fc2"].in_factors.grad.abs().max() > 0


def test_a_weight_that_is_read_twice_in_a_forward_is_made_once(monkeypatch):
    made = []
    make = adapted_layers.adapted_weight
    monkeypatch.setattr(
        adapted_layers, "adapted_weight", lambda *args: made.append(1) or make(*args)
    )
    _, block, adapters = adapted()
    layer, adapter = block.ffn.layers[1], adapters["ffn.layers.1.fc2"]
    x = torch.randn(4, 16, dtype=torch.float64, requires_grad=True)

    def forward():
        return nn.functional.linear(nn.functional.linear(x, layer.weight), layer.weight.T)

    y = forward()
    assert len(made) == 1
    y.square().sum().backward()
    found = adapter.in_factors.grad.clone()
    del y  # and with it the weight: nothing of its size outlives the graph
    adapter.in_factors.grad = None
    effective = layer.base_weight + adapter.delta_weight()
    (x @ effective.T @ effective).square().sum().backward()
    torch.testing.assert_close(found, adapter.in_factors.grad)
    y = forward()
    assert len(made) == 2
    with torch.no_grad():
        adapter.in_factors.mul_(1.1)
    z = forward()  # while y is alive, but not of these factors
    assert len(made) == 3 and not torch.allclose(y, z)


@pytest.mark.parametrize("fused", [True, False])
def test_training_never_makes_a_whole_effective_weight(monkeypatch, fused):
    def refuse(*_):
        raise AssertionError("an effective weight was made in training")

    _, block, _ = adapted()
    block.attn.attn.returns_weights = not fused
    monkeypatch.setattr(adapted_layers, "adapted_weight", refuse)
    block(X).sum().backward()


def test_deltas_are_made_once_in_eval_under_autocast(monkeypatch):
    made = []
    make = adapted_layers.merge_deltas
    monkeypatch.setattr(adapted_layers, "merge_deltas", lambda *a: made.append(1) or make(*a))
    _, block, adapters = adapted()
    block = block.float().eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        first = block(X.float())
        count = len(made)
        assert torch.equal(block(X.float()), first) and len(made) == count > 0
        adapters["ffn.layers.1.fc2"].in_factors.mul_(3.0)
        assert not torch.equal(block(X.float()), first) and len(made) == count + 1


def test_reading_a_weight_under_autocast_warns():
    _, block, _ = adapted()
    layer = block.float().ffn.layers[1]
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.warns(match="rounds most of the"):
        layer.weight  # noqa: B018


def test_a_linear_with_its_own_forward_keeps_it():
    class Doubling(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(Doubling(4, 3, bias=False)).double()
    adapters = add_adapters(model, dict(rank=2), targets=["0"])
    delta = next(iter(adapters.values())).double().delta_weight()
    x = torch.randn(2, 4, dtype=torch.float64)
    torch.testing.assert_close(model(x), 2 * x @ (model[0].base_weight + delta).T)


def test_the_merged_weight_is_made_once_and_follows_changes():
    _, block, adapters = adapted()
    layer = block.ffn.layers[1].eval()
    adapter = adapters["ffn.layers.1.fc2"]
    with torch.no_grad():
        first = layer.weight
        assert layer.weight is first
        for change in (
            lambda: adapter.in_factors.mul_(1.5),
            lambda: adapter.alpha.add_(1.0),
            lambda: adapter.set_num_nonzero(7),
            lambda: layer.base_weight.add_(1.0),
            lambda: adapter.load_state_dict({**adapter.state_dict(), "beta": torch.ones(1)}),
        ):
            before = layer.weight
            change()
            assert not torch.equal(layer.weight, before)
            torch.testing.assert_close(layer.weight, layer.base_weight + adapter.delta_weight())
        adapter.in_factors.data.mul_(2.0)  # behind autograd's back: eval() makes it seen
        layer.eval()
        torch.testing.assert_close(layer.weight, layer.base_weight + adapter.delta_weight())


def test_copies_pickles_and_state_dicts_carry_everything():
    _, block, adapters = adapted(initial_sparsity=0.5)
    adapters["attn.attn.k"].set_num_nonzero(11)
    block.eval()
    with torch.no_grad():
        expected = block(X)
        for twin in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
            assert torch.equal(twin.eval()(X), expected)
        _, other, _ = adapted(seed=1)
        other.load_state_dict(block.state_dict())
        assert torch.equal(other.eval()(X), expected)
        assert list_adapters(other)["attn.attn.k"].num_nonzero == 11


def test_sparsity_is_exact_whatever_the_dtype():
    adapter = SnellaAdapter(768, 3072, rank=4)
    adapter.set_num_nonzero(1_234_567)
    assert adapter.half().num_nonzero == 1_234_567
    assert adapter.sparsity.dtype == torch.float64
    assert int((adapter.float().delta_weight() != 0).sum()) == 1_234_567


def test_a_starved_matrix_is_silent_and_can_come_back():
    adapter = SnellaAdapter(8, 8, rank=2)
    adapter.set_num_nonzero(0)
    assert not adapter.delta_weight().any()
    adapter.set_num_nonzero(5)
    assert int((adapter.delta_weight() != 0).sum()) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(kernel="cubic"), "mixed"),
        (dict(sparsifier="sharp"), "weighted"),
        (dict(rank=5), "multiple of heads"),
        (dict(rank=0), "multiple of heads"),
        (dict(initial_sparsity=1.0), r"\[0, 1\)"),
        (dict(token_share=0.0), r"token_share must lie in \(0, 1\], 1 for LoRA, got 0.0"),
        (dict(token_share=1.5), r"token_share must lie in \(0, 1\], 1 for LoRA, got 1.5"),
        (dict(token_share="half"), "token_share must be float, got 'half'"),
        (dict(kernel="linear", sparsifier="none", token_share=0.5), "1 for LoRA, got 0.5"),
        (dict(sparsifier="none", initial_sparsity=0.5), "'none' keeps all weights, got initial_sp"),
        (dict(scale=0.0), "scale must be a positive number, got 0.0"),
        (dict(scale=float("inf")), "scale must be a positive number, got inf"),
        (dict(kernel="linear", spread=0.1), "spread is for kernels of distances"),
        (dict(kernel="distance", spread=-1.0), "spread must be a number and not negative, got -1"),
    ],
)
def test_bad_options_say_why(options, message):
    with pytest.raises(ValueError, match=message):
        SnellaAdapter(8, 8, **options)


def test_a_model_in_half_precision_keeps_its_deltas():
    _, block, adapters = adapted()
    for adapter in adapters.values():
        adapter.in_factors.data.mul_(0.1)
        adapter.out_factors.data.mul_(0.1)
    with torch.no_grad():
        change = merged(block).eval()(X)
        with adapters_disabled(block):
            change -= block.eval()(X)
        block.bfloat16()
        half_change = block(X.bfloat16()).double()
        with adapters_disabled(block):
            half_change -= block(X.bfloat16()).double()
    similarity = nn.functional.cosine_similarity(change.flatten(), half_change.flatten(), dim=0)
    assert similarity > 0.8


@pytest.mark.parametrize("option", ["dropout", "token_share"])
def test_adapters_of_one_weight_drop_alike(option):
    layer = nn.Sequential(nn.MultiheadAttention(8, 2))
    adapters = make_adapters(layer, {"rank": 2, option: 0.1}, ["q", "k"])
    setattr(adapters["0.k"], option, 0.2)
    with pytest.raises(ValueError, match=f"need the same {option}, got 0.1 and 0.2"):
        attach_adapters(layer, adapters)


def layer_gradients(model, run, seed=0):
    """Output and gradients of one step, and what the generator draws after it."""
    x = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    torch.manual_seed(seed)
    model.zero_grad()
    y = run(x)
    y.square().sum().backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [y.detach(), x.grad, *grads, torch.rand(())]


def sampled(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)).requires_grad_(False)
    adapters = add_adapters(model, dict(rank=4, **options), ["*"])
    for adapter in adapters.values():
        for factor in adapter.factors:
            nn.init.normal_(factor)
    return model, adapters


def test_a_part_of_the_tokens_makes_the_gradient_in_training():
    model, adapters = sampled(token_share=0.5)
    plain, _ = sampled()
    exact, found = layer_gradients(plain, plain), layer_gradients(model, model)
    assert all(torch.equal(a, b) for a, b in zip(found[:2], exact[:2], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(found[2:], exact[2:], strict=True))
    for adapter in adapters.values():
        adapter.takes_all_tokens = True
    again = layer_gradients(model, model)
    assert all(torch.equal(a, b) for a, b in zip(again, exact, strict=True))
    for adapter in adapters.values():
        adapter.takes_all_tokens = False
    model.eval()
    again = layer_gradients(model, model)
    assert all(torch.equal(a, b) for a, b in zip(again, exact, strict=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_draws_the_same_tokens(reentrant):
    model, _ = sampled(token_share=0.5)
    expected = layer_gradients(model, model)
    found = layer_gradients(model, lambda x: checkpoint(model, x, use_reentrant=reentrant))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_drop_path_is_drawn_once_for_q_k_and_v(monkeypatch):
    """Of inputs that differ, as of one: an entry does with or without all three deltas."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double()
    model = nn.Sequential(attention)
    adapters = add_adapters(model, dict(rank=4, drop_path=0.5), ["q", "k", "v"])
    for adapter in adapters.values():
        for factor in adapter.double().factors:
            nn.init.normal_(factor)
    kept = []
    project = AdaptedMultiheadAttention.product

    def watched(self, x, *args):
        y = project(self, x, *args)
        stock = nn.functional.linear(x, self.base_weight[slice(*args[1:3])], args[0])
        kept.append(~torch.isclose(y, stock).flatten(1).all(1))
        return y

    monkeypatch.setattr(AdaptedMultiheadAttention, "product", watched)
    x = torch.randn(16, 3, 8, dtype=torch.float64)
    model[0](x, x * 1.1, x * 0.9)
    assert len(kept) == 3 and 0 < kept[0].sum() < 16
    assert torch.equal(kept[0], kept[1]) and torch.equal(kept[0], kept[2])


def test_rows_that_cut_a_matrix_are_refused():
    attention = nn.MultiheadAttention(8, 2)
    model = nn.Sequential(attention)
    add_adapters(model, dict(rank=2), ["q", "k", "v"])
    assert [len(model[0].delta_blocks(*r)) for r in ((0, 8), (8, 24), (0, None))] == [1, 2, 3]
    with pytest.raises(ValueError, match="'k' is of the rows 8:16 .* only partly in 0:12"):
        model[0].delta_blocks(0, 12)


def test_an_attention_with_its_own_forward_keeps_it():
    class Doubling(nn.MultiheadAttention):
        def forward(self, *args, **options):
            out, weights = super().forward(*args, **options)
            return 2 * out, weights

    torch.manual_seed(0)
    model = nn.Sequential(Doubling(8, 2, batch_first=True)).double()
    adapters = add_adapters(model, dict(rank=4), ["q", "k", "v"])
    for adapter in adapters.values():
        adapter.double()
    plain = nn.MultiheadAttention(8, 2, batch_first=True).double()
    state = {k: v for k, v in model[0].state_dict().items() if "adapters" not in k}
    state["in_proj_weight"] = model[0].effective_weight()
    plain.load_state_dict(state)
    torch.testing.assert_close(model[0](X, X, X)[0], 2 * plain(X, X, X)[0])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_fused_attention_is_the_stock_one(batch_first, training):
    torch.manual_seed(0)
    stock = nn.MultiheadAttention(8, 2, batch_first=batch_first).double().train(training)
    fused = copy.deepcopy(stock)
    fused.__class__ = FusedMultiheadAttention
    other = X.flip(0)
    for inputs in ((X, X, X), (X, other, other)):
        for options in ({}, dict(need_weights=False), dict(attn_mask=None)):
            found, expected = fused(*inputs, **options), stock(*inputs, **options)
            torch.testing.assert_close(found, expected)
    assert pickle.loads(pickle.dumps(fused)).state_dict().keys() == stock.state_dict().keys()


@pytest.mark.parametrize("method", [dict(), dict(kernel="linear", sparsifier="none")])
@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6), (2, 6, 1, 1), (2, 6, 3, 5)])
def test_what_follows_may_write_into_the_output(method, shape):
    """Activations in place are common behind convolutions of one pixel and in MLPs."""
    layer = nn.Conv2d(6, 4, 1) if len(shape) == 4 else nn.Linear(6, 4)
    results = []
    for inplace in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(copy.deepcopy(layer), nn.ReLU(inplace)).requires_grad_(False)
        (adapter,) = add_adapters(net, dict(rank=2, **method), ["*"]).values()
        for factor in adapter.factors:
            nn.init.normal_(factor)
        x = torch.randn(*shape, requires_grad=True)
        net(x).square().sum().backward()
        results.append([x.grad, *(factor.grad for factor in adapter.factors)])
    torch.testing.assert_close(*results)
    assert all(grad.abs().max() > 0 for grad in results[0])
