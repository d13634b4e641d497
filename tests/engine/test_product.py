import weakref

import pytest
import torch
import torch.nn.functional as F

from snella_seg.engine import (
    DeltaBlock,
    adapted_linear,
    adapted_weight,
    columns,
    product,
    stack,
)
from snella_seg.engine.recipe import Recipe, mark
from snella_seg.functional import DeltaRule


def blocks_of(
    rows=((0, 6), (6, 12)),
    in_features=5,
    kernel="mixed",
    dtype=torch.float64,
    sparsifier="weighted",
    sparsity=0.4,
):
    """One block per row range, as q, k and v have; factors large enough for deltas to show."""
    made = []
    for seed, (start, stop) in enumerate(rows):
        generator = torch.Generator().manual_seed(seed)
        p, q = (
            torch.randn(2, n, 2, dtype=dtype, generator=generator)
            for n in (in_features, stop - start)
        )
        scalars = [torch.tensor([v], dtype=dtype) for v in (0.9, 1.2, 0.05)]
        params = (p, q, *(scalars if kernel == "mixed" else ()))
        for tensor in params:
            tensor.requires_grad_()
        made.append(DeltaBlock(start, stop, DeltaRule(kernel, sparsifier), sparsity, params))
    return made


def plain(x, weight, bias, blocks):
    """The oracle: ordinary autograd over the same deltas."""
    weight = weight.clone()
    for block in blocks:
        delta, _ = block.rule(block.params, block.sparsity)
        rows = torch.arange(block.start, block.stop)
        weight = weight.index_add(0, rows, delta)
    return F.linear(x, weight, bias)


def problem(dtype=torch.float64, requires_grad=True):
    generator = torch.Generator().manual_seed(9)
    x, weight, bias = (
        torch.randn(shape, dtype=dtype, generator=generator)
        for shape in ((2, 3, 5), (12, 5), (12,))
    )
    return x.requires_grad_(requires_grad), weight, bias


@pytest.mark.parametrize("kernel", ["mixed", "distance", "linear", "centred"])
@pytest.mark.parametrize("rows", [((0, 12),), ((0, 4), (4, 8), (8, 12)), ((4, 8),)])
def test_agrees_with_plain_autograd(kernel, rows):
    x, weight, bias = problem()
    bias.requires_grad_()
    blocks = blocks_of(rows, kernel=kernel)
    inputs = [x, bias, *(p for b in blocks for p in b.params)]
    y, expected = adapted_linear(x, weight, bias, blocks), plain(x, weight, bias, blocks)
    torch.testing.assert_close(y, expected)
    seed = torch.randn_like(y)
    found = torch.autograd.grad(y, inputs, seed)
    for a, b in zip(found, torch.autograd.grad(expected, inputs, seed), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("sparsity", [0.4, 0.95])
@pytest.mark.parametrize("sparsifier", ["normalised", "normalised_through"])
@pytest.mark.parametrize("kernel", ["mixed", "linear", "centred"])
def test_relative_forms_agree_with_plain_autograd(kernel, sparsifier, sparsity):
    x, weight, bias = problem()
    blocks = blocks_of(kernel=kernel, sparsifier=sparsifier, sparsity=sparsity)
    inputs = [x, *(p for b in blocks for p in b.params)]
    y, expected = adapted_linear(x, weight, bias, blocks), plain(x, weight, bias, blocks)
    torch.testing.assert_close(y, expected)
    seed = torch.randn_like(y)
    found = torch.autograd.grad(y, inputs, seed)
    for a, b in zip(found, torch.autograd.grad(expected, inputs, seed), strict=True):
        torch.testing.assert_close(a, b)
    merged = adapted_weight(weight, blocks)
    eye = torch.eye(5, dtype=torch.float64)
    by_weight = torch.autograd.grad(merged, inputs[1:], seed.flatten(0, 1).T @ x.flatten(0, 1))
    torch.testing.assert_close(merged.T, plain(eye, weight, None, blocks))
    for a, b in zip(by_weight, found[1:], strict=True):
        torch.testing.assert_close(a, b)


def test_gradcheck_with_the_hard_form():
    # The hard form is differentiable as it stands; the others hold a factor constant.
    x, weight, bias = problem()
    block = blocks_of(((0, 12),))[0]
    rule = DeltaRule("mixed", "hard")

    def layer(x, *params):
        return adapted_linear(x, weight, bias, [DeltaBlock(0, 12, rule, 0.4, params)])

    assert torch.autograd.gradcheck(layer, (x, *block.params))


def test_weight_form_agrees():
    _, weight, _ = problem()
    blocks = blocks_of()
    params = [p for b in blocks for p in b.params]
    merged = adapted_weight(weight, blocks)
    torch.testing.assert_close(
        merged.T, plain(torch.eye(5, dtype=torch.float64), weight, None, blocks)
    )
    seed = torch.randn_like(merged)
    found = torch.autograd.grad(merged, params, seed)
    eye = torch.eye(5, dtype=torch.float64)
    expected = torch.autograd.grad(plain(eye, weight, None, blocks), params, seed.T)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_frozen_inputs_get_no_gradient():
    x, weight, bias = problem(requires_grad=False)
    blocks = blocks_of()
    blocks[0].params[0].requires_grad_(False)
    adapted_linear(x, weight, bias, blocks).sum().backward()
    assert x.grad is None and weight.grad is None and blocks[0].params[0].grad is None
    assert blocks[0].params[1].grad is not None


def test_nothing_of_the_weights_size_is_saved():
    features = 64
    x = torch.randn(2, features, requires_grad=True)
    weight = torch.randn(features, features)
    blocks = blocks_of(((0, features),), features, dtype=torch.float32)
    new = []

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr():
            new.append(tensor.numel())
        return tensor

    adapted_linear(x, weight, None, blocks)  # the first use in a process checks its library
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        adapted_linear(x, weight, None, blocks)
        assert max(new) < weight.numel() / 4
        new.clear()
        plain(x, weight, None, blocks)
        assert max(new) >= weight.numel()  # the check can fail


def test_deltas_survive_half_precision():
    x, weight, _ = problem(torch.float32, requires_grad=False)
    blocks = blocks_of(dtype=torch.float32)
    for block in blocks:
        for factor in block.params[:2]:
            factor.data.mul_(1e-2)  # deltas far below what bfloat16 resolves beside the weight
    exact = plain(x, weight, None, blocks) - F.linear(x, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        change = adapted_linear(x, torch.zeros_like(weight), None, blocks).float()
        y = adapted_linear(x, weight, None, blocks)
        y.float().sum().backward()
    torch.testing.assert_close(change, exact, rtol=2e-2, atol=float(exact.abs().max()) * 1e-2)
    merged_in_half = (weight + adapted_weight(weight, blocks) - weight).bfloat16().float()
    lost = F.linear(x, merged_in_half) - F.linear(x, weight.bfloat16().float())
    assert (lost - exact).abs().max() > 10 * (change - exact).abs().max()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for b in blocks for p in b.params)


def test_same_bits_twice():
    def run():
        x, weight, bias = problem(torch.float32)
        blocks = blocks_of(dtype=torch.float32)
        y = adapted_linear(x, weight, bias, blocks)
        y.square().sum().backward()
        return [y, x.grad, *(p.grad for b in blocks for p in b.params)]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


def run(x, weight, blocks, **options):
    """Output and gradients of one call whose draws are those of seed 0."""
    torch.manual_seed(0)
    leaf = x.detach().clone().requires_grad_()
    y = adapted_linear(leaf, weight, None, blocks, **options)
    seed = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    params = [p for b in blocks for p in b.params]
    return y.detach(), torch.autograd.grad(y, [leaf, *params], seed), seed


def test_drop_path_leaves_out_whole_entries():
    x = torch.randn(7, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    _, weight, _ = problem()
    blocks = blocks_of()
    y, grads, seed = run(x, weight, blocks, drop_path=0.4)
    stock, full = F.linear(x, weight), plain(x, weight, None, blocks)
    kept = ~torch.isclose(y, stock).flatten(1).all(1)
    assert 0 < kept.sum() < 7
    expected = torch.where(kept[:, None, None], stock + (full - stock) / 0.6, stock)
    torch.testing.assert_close(y, expected)
    leaf = x.clone().requires_grad_()
    stock, full = F.linear(leaf, weight), plain(leaf, weight, None, blocks)
    expected = torch.where(kept[:, None, None], stock + (full - stock) / 0.6, stock)
    params = [p for b in blocks for p in b.params]
    for a, b in zip(grads, torch.autograd.grad(expected, [leaf, *params], seed), strict=True):
        torch.testing.assert_close(a, b)


def test_drop_path_may_leave_out_everything():
    x, weight, _ = problem()
    y, grads, _ = run(x, weight, blocks_of(), drop_path=1 - 1e-9)
    torch.testing.assert_close(y, F.linear(x, weight))
    assert grads[0].any() and not any(g.any() for g in grads[1:])


@pytest.mark.parametrize("drop_path", [0.0, 0.4])
@pytest.mark.parametrize("sparsity", [0.4, 0.95])
def test_dropout_acts_on_the_deltas_input_only(drop_path, sparsity):
    """Forward and backward use one mask: the product is linear in x, so <y, g> = <x, gx>."""
    x = torch.randn(7, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    _, weight, _ = problem()
    blocks = blocks_of()
    for block in blocks:
        block.sparsity = sparsity
    options = dict(dropout=0.5, drop_path=drop_path)
    y, grads, seed = run(x, weight, blocks, **options)
    assert not torch.allclose(y, run(x, weight, blocks)[0])
    torch.testing.assert_close((y * seed).sum(), (x * grads[0]).sum())
    again = run(x, weight, blocks, **options)
    assert torch.equal(y, again[0])
    # the delta's part of y and of <factor gradients> by the mask that x = 1 and W = 0 show
    mask_sum = run(torch.ones_like(x), torch.zeros_like(weight), blocks, dropout=0.5)[0]
    assert len(mask_sum.unique()) > 2
    torch.manual_seed(0)
    many = torch.ones(4000, 1, 5, dtype=torch.float64)
    mean = adapted_linear(many, torch.zeros_like(weight), None, blocks, **options).mean(0)
    expected = plain(many[:1], torch.zeros_like(weight), None, blocks)[0]
    torch.testing.assert_close(mean, expected, rtol=0.2, atol=0.1 * float(expected.abs().max()))


def test_dropout_gradients_of_the_factors():
    x, weight, _ = problem()
    block = blocks_of(((0, 12),))[0]
    rule = DeltaRule("mixed", "hard")

    def layer(x, *params):
        torch.manual_seed(3)
        made = [DeltaBlock(0, 12, rule, 0.4, params)]
        return adapted_linear(x, weight, None, made, dropout=0.3, drop_path=0.3)

    assert torch.autograd.gradcheck(layer, (x, *block.params))


def test_probabilities_out_of_range_are_refused():
    x, weight, _ = problem()
    for name in ("dropout", "drop_path"):
        with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\), got 1.0"):
            adapted_linear(x, weight, None, blocks_of(), **{name: 1.0})


def test_drop_path_needs_a_batch():
    x, weight, _ = problem()
    with pytest.raises(ValueError, match="drop_path leaves out entries of a batch; x is a single"):
        adapted_linear(x.flatten(0, -2)[0], weight, None, blocks_of(), drop_path=0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_tiny_deltas_of_the_start_survive_half_precision(dtype):
    """About 1e-7 each, which float16 cannot hold."""
    if dtype == torch.float16 and not hasattr(torch, "get_autocast_dtype"):
        pytest.skip("needs torch 2.4: before, a CPU's mixed precision is bfloat16")
    torch.manual_seed(0)
    p, q = (torch.empty(2, 256, 16).uniform_(-1 / 64, 1 / 64) for _ in range(2))
    scalars = [torch.tensor([v]) for v in (1.0, 1.0, 0.0)]
    params = tuple(t.requires_grad_() for t in (p, q, *scalars))
    block = DeltaBlock(0, 256, DeltaRule(), 0.5, params)
    x, zero = torch.randn(32, 256), torch.zeros(256, 256)

    def by(half):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=dtype, enabled=half):
            # float16 results of this size would be rounded themselves: look at larger ones
            y = adapted_linear(leaf * 1e4, zero, None, [block]).float()
        return [y, *torch.autograd.grad(y, [leaf, p, q], torch.ones_like(y))]

    for exact, found in zip(by(False), by(True), strict=True):
        assert (found - exact).norm() < 2e-2 * exact.norm()


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_single_precision_splits(precision, monkeypatch):
    """TF32 and the like round a merged weight; what they are set to is asked at every call."""
    calls = []
    monkeypatch.setattr(product, "merge_deltas", lambda *a: calls.append(a[0]) or merge(*a))
    merge = stack.merge_deltas
    x, weight, _ = problem(torch.float32)
    before = torch.get_float32_matmul_precision()
    try:
        for setting in ("highest", precision):
            torch.set_float32_matmul_precision(setting)
            adapted_linear(x, weight, None, blocks_of(dtype=torch.float32))
    finally:
        torch.set_float32_matmul_precision(before)
    assert calls[0] is weight and calls[1] is None


@pytest.mark.parametrize("change", ["output", "input", "nothing"])
def test_a_recipe_is_void_after_changes_in_place(change):
    _, weight, _ = problem()
    blocks = blocks_of()
    source = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    params = [p for b in blocks for p in b.params]
    results, calls = [], []

    def make_again(t):
        calls.append(1)
        return t.tanh() * 1.0

    for marked in (True, False):
        made_of = source.clone()
        leaf = made_of.tanh().requires_grad_()
        x = leaf * 1.0
        if marked:
            mark(x, Recipe(make_again, None), (made_of,))
        if change == "output":
            x += 1.0
        if change == "input":
            made_of += 1.0
        y = adapted_linear(x, weight, None, blocks)
        results.append(torch.autograd.grad(y.sum(), params))
    assert bool(calls) == (change == "nothing")
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_what_a_recipe_starts_from_dies_with_the_graph():
    _, weight, _ = problem()
    source = torch.randn(3, 5, dtype=torch.float64, requires_grad=True) * 2.0
    x = source.tanh()
    mark(x, Recipe(torch.tanh, None), (source,))
    y = adapted_linear(x, weight, None, blocks_of()).sum()
    alive = weakref.ref(source)
    del source, x
    assert alive() is not None  # autograd holds it
    y.backward()
    assert alive() is None  # and y, still there, does not


def test_a_trainable_weight_gets_its_gradient():
    x, weight, bias = problem()
    weight.requires_grad_()
    for options in ({}, dict(dropout=0.3), dict(drop_path=0.5)):
        torch.manual_seed(0)
        y = adapted_linear(x, weight, bias, blocks_of(), **options)
        seed = torch.randn_like(y)
        found = torch.autograd.grad(y, weight, seed)[0]
        torch.testing.assert_close(found, torch.autograd.grad(F.linear(x, weight), weight, seed)[0])


@pytest.mark.parametrize("shape", [(5,), (0, 5), (4, 5), (2, 3, 4, 5)])
def test_inputs_of_any_shape(shape):
    _, weight, _ = problem()
    blocks = blocks_of()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y, expected = adapted_linear(x, weight, None, blocks), plain(x, weight, None, blocks)
    torch.testing.assert_close(y, expected)
    inputs = [x, *(p for b in blocks for p in b.params)]
    found = torch.autograd.grad(y.sum(), inputs)
    for a, b in zip(found, torch.autograd.grad(expected.sum(), inputs), strict=True):
        torch.testing.assert_close(a, b)
    if len(shape) == 1:
        with pytest.raises(ValueError, match="single vector"):
            adapted_linear(x, weight, None, blocks, drop_path=0.5)


@pytest.mark.parametrize("sparsity", [0.4, 0.95])
def test_half_precision_errs_no_more_than_the_plain_way(sparsity):
    """Two bfloat16 products, of W and of the delta, with their gradients."""
    x, weight, _ = problem(torch.float32, requires_grad=False)
    blocks = blocks_of(dtype=torch.float32)
    for block in blocks:
        block.sparsity = sparsity
    params = [p for b in blocks for p in b.params]

    def by(product):
        leaf = x.clone().requires_grad_()
        y = product(leaf).float()
        seed = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        return [y, *torch.autograd.grad(y, [leaf, *params], seed)]

    def naive(leaf):
        zero = torch.zeros_like(weight)
        with torch.autocast("cpu", enabled=False):
            delta = plain(torch.eye(5), zero, None, blocks).T
        return F.linear(leaf, weight) + F.linear(leaf, delta)

    exact = by(lambda leaf: plain(leaf, weight, None, blocks))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = by(naive)
        found = by(lambda leaf: adapted_linear(leaf, weight, None, blocks))
    for ours, theirs, right in zip(found, rough, exact, strict=True):
        size = right.abs().max()
        assert (ours - right).abs().max() <= (theirs - right).abs().max() + 2**-7 * size


def test_autocast_keeps_no_copy_of_the_weight():
    features = 64
    x = torch.randn(2, features, requires_grad=True)
    weight = torch.randn(features, features)
    blocks = blocks_of(((0, features),), features, dtype=torch.float32)
    own = {weight.untyped_storage().data_ptr()}
    sizes = []

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            sizes.append(tensor.numel())
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        adapted_linear(x, weight, None, blocks)
        assert max(sizes) < weight.numel() / 4
        sizes.clear()
        F.linear(x, weight)
        assert max(sizes) >= weight.numel()  # the check can fail


@pytest.mark.parametrize("sparsity", [0.4, 0.97])
def test_columns_without_a_weight_are_left_out_exactly(sparsity, monkeypatch):
    """Gathering active columns and rows changes nothing but the order of sums."""
    x, weight, _ = problem()
    blocks = blocks_of()
    for block in blocks:
        block.sparsity = sparsity
    results = []
    for gather in (0.0, 1.0):
        monkeypatch.setattr(columns, "GATHER", gather)
        results.append(run(x, weight, blocks)[:2])
    (y, grads), (other_y, other_grads) = results
    assert torch.equal(y, other_y)
    for a, b in zip(grads, other_grads, strict=True):
        torch.testing.assert_close(a, b)


def test_a_starved_matrix_takes_no_part():
    x, weight, _ = problem()
    blocks = blocks_of()
    blocks[0].sparsity = 1.0
    y, grads, _ = run(x, weight, blocks)
    torch.testing.assert_close(y[..., :6], F.linear(x, weight[:6]))
    starved, other = grads[1:6], grads[6:]
    assert not any(g.any() for g in starved) and all(g.any() for g in other)


def test_one_read_weight_serves_several_graphs():
    _, weight, _ = problem()
    blocks = blocks_of()
    params = [p for b in blocks for p in b.params]
    merged = adapted_weight(weight, blocks)
    (2 * merged).sum().backward()
    (3 * merged).sum().backward()
    expected = torch.autograd.grad(
        5 * plain(torch.eye(5, dtype=torch.float64), weight, None, blocks).sum(), params
    )
    for p, e in zip(params, expected, strict=True):
        torch.testing.assert_close(p.grad, e)
    with torch.no_grad():
        params[0].mul_(2)
    with pytest.raises(RuntimeError, match="changed in place between forward and backward"):
        merged.sum().backward()
