"""The tiled weight side against the plain rule and autograd."""

import pytest
import torch

from snella_seg.engine import Bracket, columns, find_threshold, tiles
from snella_seg.engine.distance_tiles import DistanceTiles
from snella_seg.engine.threshold_search import ThresholdSearch
from snella_seg.functional import DeltaRule, mixed_kernel

RULES = [
    DeltaRule(kernel, sparsifier)
    for kernel in ("mixed", "distance", "linear", "centred")
    for sparsifier in ("weighted", "soft", "hard", "none", "normalised", "normalised_through")
]


def params_of(outs, ins, heads=2, columns=4, kernel="mixed", dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(heads, n, columns, generator=generator) for n in (ins, outs)]
    if kernel == "mixed":
        values += [torch.tensor([v]) for v in (0.9, 0.7, 0.05)]
    return tuple(v.to(dtype) for v in values)


def tiled_delta(params, rule, sparsity, grad, **options):
    """Delta, threshold, columns and gradients, in tiles."""
    outs, ins = params[1].shape[1], params[0].shape[1]
    out = torch.empty(outs, ins, dtype=params[0].dtype)
    state = tiles.write_delta(params, rule, sparsity, Bracket(), out, **options)
    threshold, active, unit, *centre = state
    matrix = tiles.tiles_of(params, rule, None if centre[0] is None else tuple(centre))
    parts = columns.column_tiles(outs, ins) if active is None else [active]
    for part in parts:
        tile = matrix.tile(part)
        _, factor = tiles.split_factor(tile.dense, float(threshold), rule.sparsifier)
        through = tiles.gradient_factor(tile.dense, float(threshold), rule.sparsifier)
        factor = (factor if through is None else through) / (1.0 if unit is None else unit)
        matrix.add_gradients(tile, grad[:, part] * factor)
    return out, threshold, active, matrix.gradients((True,) * len(params))


def plain_delta(params, rule, sparsity, grad):
    leaves = tuple(p.clone().requires_grad_() for p in params)
    delta, threshold = rule(leaves, sparsity)
    return delta.detach(), threshold, torch.autograd.grad(delta, leaves, grad)


@pytest.fixture(params=[40, 800_000], ids=["many tiles", "one tile"])
def tile_size(request, monkeypatch):
    monkeypatch.setattr(columns, "TILE", request.param)
    monkeypatch.setattr(columns, "MIN_COLUMNS", 1)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: f"{r.kernel}-{r.sparsifier}")
@pytest.mark.parametrize("heads, width", [(1, 3), (2, 4), (4, 1)])
@pytest.mark.parametrize("sparsity", [0.0, 0.4, 0.97, 1.0])
def test_agrees_with_the_plain_rule(rule, heads, width, sparsity, tile_size):
    params = params_of(7, 101, heads, width, rule.kernel)
    grad = torch.randn(7, 101, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    delta, threshold, active, grads = tiled_delta(params, rule, sparsity, grad)
    expected, expected_threshold, expected_grads = plain_delta(params, rule, sparsity, grad)
    torch.testing.assert_close(threshold, expected_threshold)
    torch.testing.assert_close(delta, expected)
    everywhere = rule.sparsifier in ("none", "normalised_through")
    assert (active is None) == (sparsity < 0.9 or everywhere)
    for found, right in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(found, right)


def test_single_precision_is_not_worse_than_the_plain_rule():
    rule = DeltaRule()
    rough = params_of(96, 64, columns=16, dtype=torch.float32)
    rough = tuple(p * 0.03 if p.ndim == 3 else p for p in rough)  # as trained factors are
    grad = torch.randn(96, 64, generator=torch.Generator().manual_seed(3))
    exact, _, exact_grads = plain_delta(tuple(p.double() for p in rough), rule, 0.8, grad.double())
    delta, _, _, grads = tiled_delta(rough, rule, 0.8, grad)
    plain, _, plain_grads = plain_delta(rough, rule, 0.8, grad)
    found = [delta, *grads]
    for ours, theirs, right in zip(
        found, [plain, *plain_grads], [exact, *exact_grads], strict=True
    ):
        size = right.abs().max()
        error, allowed = ((t.double() - right).abs().max() / size for t in (ours, theirs))
        assert error <= 2 * allowed + 1e-5, (float(error), float(allowed))


def test_nearly_equal_rows_keep_their_digits():
    p, q, *scalars = params_of(40, 30, columns=16, dtype=torch.float32)
    q[:, :10] = p[:, :10] * (1 + 1e-5)
    q[:, 10] = p[:, 10]  # at distance zero the gradient is zero
    grad = torch.randn(40, 30, generator=torch.Generator().manual_seed(2))
    rule = DeltaRule("mixed", "hard")
    exact = [t.double() for t in (p, q, *scalars)]
    _, _, right = plain_delta(tuple(exact), rule, 0.0, grad.double())
    _, _, _, found = tiled_delta((p, q, *scalars), rule, 0.0, grad)
    for a, b in zip(found, right, strict=True):
        assert (a.double() - b).norm() <= 1e-4 * b.norm()
    matrix = DistanceTiles((p, q, *scalars), rule)
    assert matrix.tile(slice(0, 30)).near is not None
    dense = mixed_kernel(*exact)
    torch.testing.assert_close(
        matrix.tile(slice(0, 30)).dense.double(), dense, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("heads", [1, 3])
def test_a_gradient_that_is_the_same_in_all_columns(heads):
    """The short way of centred kernels, also where rows nearly or fully coincide."""
    p, q = params_of(12, 30, heads, kernel="distance")
    q[:, :3] = p[:, :3] * (1 + 1e-5)
    q[:, 3] = p[:, 3]
    grad = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    short, long = (DistanceTiles((p, q), DeltaRule("distance")) for _ in range(2))
    for part in (slice(0, 16), slice(16, 30)):
        short.add_gradients_of_outputs(part, grad)
        tile = long.tile(part)
        long.add_gradients(tile, grad[:, None].repeat(1, tile.dense.shape[1]))
    for found, right in zip(short.gradients((True,) * 2), long.gradients((True,) * 2), strict=True):
        torch.testing.assert_close(found, right)


def test_the_same_weights_take_part_in_backward(monkeypatch):
    """Whether tiles are cut as in forward, or only some columns are made."""
    params, rule = params_of(96, 640, columns=16, dtype=torch.float32), DeltaRule("mixed", "hard")
    out = torch.empty(96, 640)
    monkeypatch.setattr(columns, "MIN_COLUMNS", 128)
    monkeypatch.setattr(columns, "TILE", 96 * 128)
    threshold, active, *_ = tiles.write_delta(params, rule, 0.995, Bracket(), out)
    matrix = DistanceTiles(params, rule)
    assert 0 < len(active) < 640
    again = matrix.tile(active).dense
    kept, factor = tiles.split_factor(again, float(threshold), "hard")
    assert torch.equal(kept * factor, out[:, active])
    rest = torch.ones(640, dtype=torch.bool)
    rest[active] = False
    assert not out[:, rest].any()


@pytest.mark.parametrize("none", [slice(0, 0), torch.zeros(0, dtype=torch.int64)])
def test_no_column_at_all(none):
    matrix = DistanceTiles(params_of(5, 4), DeltaRule())
    tile = matrix.tile(none)
    matrix.add_gradients(tile, torch.zeros(5, 0, dtype=torch.float64))
    assert not any(g.any() for g in matrix.gradients((True,) * 5))


@pytest.mark.parametrize("sparsity", [0.0, 1e-4, 0.3, 0.9, 0.999, 1.0])
def test_the_search_finds_the_exact_threshold(sparsity):
    """While the matrix drifts, jumps, and has ties; the bracket serves most of the time."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(60, 70, generator=generator)
    bracket, hits = Bracket(), 0
    for step in range(40):
        dense = dense + 1e-4 * torch.randn(60, 70, generator=generator)
        if step == 20:
            dense = dense * 3
        if step == 30:
            dense[:, :35] = dense[:, 35:]
        search = ThresholdSearch(dense.numel(), sparsity, bracket)
        for part in dense.split(16, 1):
            search.add(part.contiguous())
        calls = []
        whole = _Counted(dense, calls)
        assert torch.equal(search.finish(whole), find_threshold(dense, sparsity))
        hits += not calls
    assert hits >= {0.3: 15, 0.9: 25, 0.999: 25, 1.0: 30}.get(sparsity, 0)


class _Counted(torch.Tensor):
    """A matrix that notes when all of it is looked at."""

    @staticmethod
    def __new__(cls, tensor, calls):
        made = tensor.as_subclass(cls)
        made.calls = calls
        return made

    def flatten(self):
        self.calls.append("flatten")
        return self.as_subclass(torch.Tensor).flatten()

    def detach(self):
        return self

    def abs(self):
        self.calls.append("abs")
        return self.as_subclass(torch.Tensor).abs()


def test_a_matrix_of_twenty_million_weights():
    """Above the 2**24 elements at which torch.quantile ends."""
    params = params_of(5120, 3920, columns=2, dtype=torch.float32)
    out = torch.empty(5120, 3920)
    threshold, *_ = tiles.write_delta(params, DeltaRule("mixed", "hard"), 0.9, Bracket(), out)
    size = out.numel()
    assert size > 2e7
    assert int((out != 0).sum()) == pytest.approx(0.1 * size, abs=2)
    assert float(out[out != 0].abs().min()) > float(threshold)


def test_half_precision_factors_are_worked_on_in_single():
    params = tuple(p.bfloat16() for p in params_of(9, 8))
    grad = torch.randn(9, 8, generator=torch.Generator().manual_seed(3))
    out = torch.empty(9, 8)
    tiles.write_delta(params, DeltaRule(), 0.4, Bracket(), out)
    expected, _ = DeltaRule()(params, 0.4)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-7)
    matrix = DistanceTiles(params, DeltaRule())
    matrix.add_gradients(matrix.tile(slice(0, 8)), grad)
    assert all(g.dtype == torch.bfloat16 for g in matrix.gradients((True,) * 5))
