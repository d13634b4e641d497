"""Products of which only some entries are made."""

import pytest
import torch
from entries import entries_of

from snella_seg.engine import DeltaBlock, adapted_linear, native
from snella_seg.engine.native import sampled
from snella_seg.functional import DeltaRule

pytestmark = pytest.mark.usefixtures("compiler")


def operands(tokens, outs, columns):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(tokens, n, generator=generator) for n in (outs, columns))


@pytest.mark.parametrize("tokens, outs, columns", [(1, 1, 1), (97, 65, 130), (192, 130, 64)])
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_wanted_entries_are_those_of_the_product(tokens, outs, columns, density):
    left, right = operands(tokens, outs, columns)
    wanted = torch.rand(outs, columns, generator=torch.Generator().manual_seed(1)) < density
    room = torch.full((outs, columns + 3), 7.0)
    found = sampled.sampled_product(left, right, entries_of(wanted), room[:, 1:-2])
    exact = (left.double().T @ right.double()) * wanted
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    assert (room[:, 0] == 7).all() and (room[:, -2:] == 7).all()
    apart = sampled.sampled_product(left.T.contiguous().T, right.repeat(1, 2)[:, :columns],
                                    entries_of(wanted))  # fmt: skip
    assert torch.equal(apart, found)
    same = left[:1].expand(tokens, -1)  # as the gradient of a mean over tokens
    found = sampled.sampled_product(same, right, entries_of(wanted))
    exact = (same.double().T @ right.double()) * wanted
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


def test_the_same_bits_whatever_the_threads_and_other_entries(monkeypatch):
    monkeypatch.setattr("snella_seg.engine.native.strips.SMALL", 1)
    left, right = operands(100, 90, 300)
    wanted = torch.rand(90, 300, generator=torch.Generator().manual_seed(1)) < 0.2
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = sampled.sampled_product(left, right, entries_of(wanted))
        torch.set_num_threads(3)
        assert torch.equal(sampled.sampled_product(left, right, entries_of(wanted)), alone)
    finally:
        torch.set_num_threads(threads)
    everything = sampled.sampled_product(left, right, entries_of(torch.ones_like(wanted)))
    assert torch.equal(everything * wanted, alone)


def test_empty_or_double_products_are_made_whole():
    left, right = operands(20, 10, 70)
    assert sampled.can_sample(left, right)
    assert not sampled.can_sample(left.double(), right.double())
    assert not sampled.can_sample(left[:0], right[:0])


def test_nan_reaches_the_entries_it_belongs_to():
    left, right = operands(20, 5, 70)
    left[3, 2] = torch.nan
    found = sampled.sampled_product(left, right, entries_of(torch.ones(5, 70, dtype=torch.bool)))
    assert found[2].isnan().all() and found.isnan().sum() == 70


@pytest.mark.parametrize(("zen_5", "found"), [(False, False), (True, True)])
def test_the_processor_decides_up_to_which_density(monkeypatch, zen_5, found):
    monkeypatch.setattr(sampled, "is_zen_5", lambda: zen_5)
    rule, params = DeltaRule(), [torch.randn(2, n, 16) for n in (150, 37)]
    params += [torch.tensor([v]) for v in (0.9, 0.7, 0.05)]
    out, bracket = torch.empty(37, 150), DeltaBlock(0, 1, rule, 0, ()).bracket
    for sparsity, expected in ((0.8, True), (0.5, found), (0.3, False)):
        state = native.write_delta(tuple(params), rule, sparsity, bracket, out)
        entries = native.NativeMatrix(tuple(params), rule, state).entries
        assert (entries is not None) is expected


def test_forward_marks_the_entries_that_take_part():
    rule, params = DeltaRule(), [torch.randn(2, n, 16) for n in (150, 37)]
    params += [torch.tensor([v]) for v in (0.9, 0.7, 0.05)]
    out, bracket = torch.empty(37, 150), DeltaBlock(0, 1, rule, 0, ()).bracket
    state = native.write_delta(tuple(params), rule, 0.8, bracket, out)
    entries = native.NativeMatrix(tuple(params), rule, state).entries
    assert torch.equal(entries.masks, entries_of(out != 0).masks)
    for columns in (slice(0, 150), slice(64, 128), slice(30, 150), torch.tensor([3, 64, 149])):
        expected, found = entries_of(out[:, columns] != 0), entries.of(columns)
        assert torch.equal(found.masks, expected.masks) and found.columns == expected.columns


@pytest.mark.parametrize("kernel", ["mixed", "centred"])
@pytest.mark.parametrize("sparsity, taken", [(0.8, True), (0.3, False)])
def test_a_step_takes_it_where_it_pays(kernel, sparsity, taken, monkeypatch):
    calls, rule = [], DeltaRule(kernel, "normalised")
    real = sampled.sampled_product
    monkeypatch.setattr(
        "snella_seg.engine.tiles.sampled_product", lambda *a: calls.append(1) or real(*a)
    )
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(2, n, 16, generator=generator) for n in (70, 90)]
    params += [torch.tensor([v]) for v in (0.9, 0.7, 0.05)] if kernel == "mixed" else []
    x, weight, grad = (torch.randn(n, generator=generator) for n in ((50, 70), (90, 70), (50, 90)))

    def step(dtype):
        leaves = tuple(p.detach().to(dtype).requires_grad_() for p in params)
        block = DeltaBlock(0, 90, rule, sparsity, leaves)
        y = adapted_linear(x.to(dtype).requires_grad_(), weight.to(dtype), None, [block])
        return torch.autograd.grad(y, leaves, grad.to(dtype))

    found = step(torch.float32)
    assert bool(calls) is taken
    for ours, exact in zip(found, step(torch.float64), strict=True):
        assert (ours - exact).norm() <= 1e-4 * exact.norm()
    assert len(calls) <= 1  # not in double precision
