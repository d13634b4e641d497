"""A kernel and a sparsifier of one's own work in every path, by nothing but their registration."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from snella_seg.engine import (
    DeltaBlock,
    adapted_linear,
    adapted_weight,
    autograd_tiles,
    columns,
    merge_deltas,
    stack,
)
from snella_seg.functional import (
    KERNELS,
    SPARSIFIERS,
    DeltaRule,
    register_kernel,
    register_sparsifier,
)
from snella_seg.inject import add_adapters, list_adapters


def gaussian(in_factors, out_factors, height, *, scale):
    """A bump of the distance, columnwise."""
    squares = (out_factors[:, :, None] - in_factors[:, None]).square().sum(-1)
    return scale * height * torch.exp(-squares).sum(0)


def row_centred(in_factors, out_factors, *, scale):
    """A kernel whose columns depend on each other."""
    dense = scale * torch.cdist(out_factors, in_factors).sum(0)
    return dense - dense.mean(1, keepdim=True)


def cubed(dense, threshold):
    """A factor with a sign, so that nothing may rely on factors of one sign."""
    return dense**3 * (dense.abs() > threshold)


def relative(dense, threshold):
    """A factor that looks at the whole matrix."""
    return dense.abs() / dense.square().mean().sqrt() * (dense.abs() > threshold)


def everywhere(dense, threshold):
    """What the gradient is multiplied with, left-out weights included."""
    return 1.0 + dense.abs()


@pytest.fixture(autouse=True)
def registered():
    tables = KERNELS, SPARSIFIERS
    before = [dict(table) for table in tables]
    register_kernel("gaussian", gaussian, {"height": 1.5})
    register_kernel("row_centred", row_centred)
    register_sparsifier("cubed", cubed)
    register_sparsifier("relative", relative)
    register_sparsifier("through", cubed, gradient=everywhere)
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


RULES = [
    ("gaussian", "cubed"),
    ("gaussian", "weighted"),
    ("gaussian", "none"),
    ("mixed", "cubed"),
    ("linear", "cubed"),
    ("row_centred", "soft"),
    ("mixed", "relative"),
    ("row_centred", "relative"),
    ("linear", "through"),
    ("gaussian", "through"),
]


def blocks_of(kernel, sparsifier, rows=((0, 6), (6, 12)), dtype=torch.float64):
    made = []
    for seed, (start, stop) in enumerate(rows):
        generator = torch.Generator().manual_seed(seed)
        p, q = (torch.randn(2, n, 2, generator=generator) for n in (70, stop - start))
        count = {"gaussian": 1, "mixed": 3}.get(kernel, 0)
        scalars = [torch.tensor([v]) for v in (0.9, 1.2, 0.05)[:count]]
        params = tuple(t.to(dtype).requires_grad_() for t in (p, q, *scalars))
        made.append(DeltaBlock(start, stop, DeltaRule(kernel, sparsifier, 0.7), 0.6, params))
    return made


def plain_weight(weight, blocks):
    """The oracle: plain autograd over the definition."""
    total = weight.clone()
    for block in blocks:
        delta, _ = block.rule(block.params, block.sparsity)
        total = total.index_add(0, torch.arange(block.start, block.stop), delta)
    return total


def problem(dtype=torch.float64):
    generator = torch.Generator().manual_seed(9)
    shapes = ((4, 3, 70), (12, 70))
    x, weight = (torch.randn(s, dtype=torch.float64, generator=generator).to(dtype) for s in shapes)
    return x.requires_grad_(), weight


@pytest.fixture(params=[200, 800_000], ids=["many tiles", "one tile"])
def tile_size(request, monkeypatch):
    monkeypatch.setattr(columns, "TILE", request.param)
    monkeypatch.setattr(columns, "MIN_COLUMNS", 1)


def same_gradients(y, expected, inputs):
    torch.testing.assert_close(y, expected)
    seed = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(y, inputs, seed)
    for a, b in zip(found, torch.autograd.grad(expected, inputs, seed), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("rule", RULES, ids="-".join)
@pytest.mark.parametrize("rows", [((0, 12),), ((0, 6), (6, 12)), ((4, 9),)])
def test_the_product_in_training(rule, rows, tile_size):
    x, weight = problem()
    blocks = blocks_of(*rule, rows)
    inputs = [x, *(p for b in blocks for p in b.params)]
    expected = F.linear(x, plain_weight(weight, blocks))
    same_gradients(adapted_linear(x, weight, None, blocks), expected, inputs)


@pytest.mark.parametrize("rule", RULES, ids="-".join)
def test_the_weight_that_is_read(rule, tile_size):
    _, weight = problem()
    blocks = blocks_of(*rule)
    params = [p for b in blocks for p in b.params]
    same_gradients(adapted_weight(weight, blocks), plain_weight(weight, blocks), params)


@pytest.mark.parametrize("rule", RULES, ids="-".join)
def test_drop_path_and_dropout(rule):
    """The product is linear in x, and forward and backward use one mask: <y, g> = <x, gx>."""
    x, weight = problem()
    blocks = blocks_of(*rule)
    for options in (dict(drop_path=0.4), dict(dropout=0.5), dict(dropout=0.3, drop_path=0.3)):
        torch.manual_seed(0)
        y = adapted_linear(x, weight, None, blocks, **options)
        seed = torch.randn_like(y)
        (grad,) = torch.autograd.grad(y, x, seed)
        torch.testing.assert_close((y * seed).sum(), (x * grad).sum())


@pytest.mark.parametrize("rule", RULES, ids="-".join)
def test_half_precision_is_near(rule):
    x, weight = problem(torch.float32)
    blocks = blocks_of(*rule, dtype=torch.float32)
    inputs = [x, *(p for b in blocks for p in b.params)]
    exact = F.linear(x, plain_weight(weight, blocks))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = adapted_linear(x, weight, None, blocks).float()
    torch.manual_seed(0)  # there are draws for which terms of a scalar's gradient cancel
    seed = torch.randn_like(y)
    pairs = zip(
        (y, *torch.autograd.grad(y, inputs, seed)),
        (exact, *torch.autograd.grad(exact, inputs, seed)),
        strict=True,
    )
    for found, right in pairs:
        assert (found - right).norm() < 0.06 * right.norm() + 1e-6


@pytest.mark.parametrize("rule", RULES, ids="-".join)
def test_an_adapted_module_in_eval_and_merged(rule):
    torch.manual_seed(0)
    kernel, sparsifier = rule
    layer = nn.Sequential(nn.Linear(7, 9)).double()
    options = dict(rank=4, kernel=kernel, sparsifier=sparsifier, scale=0.5)
    add_adapters(layer, options, ["0"])
    (adapter,) = list_adapters(layer).values()
    for factor in adapter.factors:
        nn.init.normal_(factor)
    x = torch.randn(3, 7, dtype=torch.float64)
    effective = layer[0].base_weight + adapter.delta_weight()
    expected = F.linear(x, effective, layer[0].bias)
    torch.testing.assert_close(layer(x), expected)
    layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
        alone, _ = merge_deltas(None, (9, 7), [adapter.delta_block()])
    torch.testing.assert_close(alone, adapter.delta_weight().detach())


def test_learnable_scalars_come_with_the_kernel():
    layer = nn.Sequential(nn.Linear(7, 9))
    add_adapters(layer, dict(rank=4, kernel="gaussian"), ["0"])
    (adapter,) = list_adapters(layer).values()
    assert adapter.height.item() == 1.5 and adapter.scalar_names == ("height",)


def test_deltas_of_one_weight_may_be_made_in_different_ways():
    x, weight = problem()
    first, second = blocks_of("gaussian", "cubed")
    other = blocks_of("row_centred", "relative")[1]
    for blocks in ([first, other], [other]):
        inputs = [x, *(p for b in blocks for p in b.params)]
        expected = F.linear(x, plain_weight(weight, blocks))
        same_gradients(adapted_linear(x, weight, None, blocks), expected, inputs)
    assert stack.makers([first, second]) == [stack.Maker.TILES] * 2
    assert stack.makers([first, other]) == [stack.Maker.WHOLE] * 2


def test_large_matrices_are_made_in_parts(monkeypatch):
    """A kernel whose columns are independent never exists as a whole with its graph."""
    widths = []
    tile = autograd_tiles.AutogradTiles.tile

    def watched(self, part, out=None):
        made = tile(self, part, out)
        widths.append(made.dense.shape[1])
        return made

    monkeypatch.setattr(autograd_tiles.AutogradTiles, "tile", watched)
    monkeypatch.setattr(columns, "TILE", 12 * 32)
    monkeypatch.setattr(columns, "MIN_COLUMNS", 1)
    x, weight = problem()
    adapted_linear(x, weight, None, blocks_of("gaussian", "weighted")).sum().backward()
    assert max(widths) <= 64 < 70


@pytest.mark.parametrize(
    "register, message",
    [
        (lambda: register_kernel("mixed", gaussian), "a kernel 'mixed' is registered already"),
        (lambda: register_kernel("new", gaussian, {"in_factors": 1.0}), "must be new parameter"),
        (lambda: register_kernel("new", lambda p, q, scale: q), "must return \\(out, in\\)"),
        (lambda: register_sparsifier("soft", cubed), "a sparsifier 'soft' is registered already"),
        (lambda: register_sparsifier("new", lambda k, t: k.sum(0)), "of K's shape"),
    ],
)
def test_what_cannot_be_registered(register, message):
    with pytest.raises(ValueError, match=message):
        register()


@pytest.mark.parametrize("names", [dict(kernel="cubic"), dict(sparsifier="top")])
def test_unknown_names_are_errors_everywhere(names):
    with pytest.raises(ValueError, match="unknown .* choose one of"):
        DeltaRule(**names)
    with pytest.raises(ValueError, match="unknown .* choose one of"):
        add_adapters(nn.Sequential(nn.Linear(2, 2)), dict(rank=2, **names), ["0"])
