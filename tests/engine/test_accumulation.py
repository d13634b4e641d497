"""What micro-batches share: deltas made once, gradients summed by entry, the same results."""

import copy

import pytest
import torch
from entries import entries_of
from torch import nn

from snella_seg.engine import Accumulator, DeltaBlock, adapted_linear, native, stack
from snella_seg.engine.native import Layout
from snella_seg.functional import DeltaRule
from snella_seg.inject import (
    accumulate_gradients,
    add_adapters,
    drop_gradients,
    freeze_base,
    list_adapters,
    restore_sums,
    settle_gradients,
    waiting_sums,
)
from snella_seg.layers import SnellaAdapter

pytestmark = pytest.mark.usefixtures("compiler")


def model_of(kernel="mixed", sparsity=0.8, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(70, 130), nn.GELU(), nn.Linear(130, 70))
    options = dict(rank=8, heads=2, kernel=kernel, sparsifier="normalised", spread=0.3) | options
    add_adapters(model, options, ["0", "2"], SnellaAdapter)
    freeze_base(model)
    for adapter in list_adapters(model).values():
        adapter.set_num_nonzero(round((1 - sparsity) * adapter.size))
    return model.train()


def batches(count=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 15, 70, generator=generator) for _ in range(count)]


def gradients_of(model):
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def step(model, told, inputs=None):
    """Outputs, gradients by the inputs, and those by the factors, summed over micro-batches."""
    inputs, outputs, by_inputs = batches() if inputs is None else inputs, [], []
    for i, x in enumerate(inputs):
        if told:
            accumulate_gradients(model, i < len(inputs) - 1)
        x = x.clone().requires_grad_()
        y = model(x)
        y.square().sum().backward()
        outputs.append(y.detach())
        by_inputs.append(x.grad)
    return outputs, by_inputs, gradients_of(model)


@pytest.fixture
def made(monkeypatch):
    """Shapes of the deltas that the library has made."""
    step(model_of(), told=False)  # at first the library proves itself
    calls, real = [], native.write_delta

    def write_delta(*arguments):
        calls.append(tuple(arguments[4].shape))
        return real(*arguments)

    monkeypatch.setattr(stack.native, "write_delta", write_delta)
    return calls


@pytest.mark.parametrize("rows, columns", [(1, 1), (5, 64), (37, 150), (130, 257)])
def test_entries_are_packed_and_unpacked(rows, columns):
    generator = torch.Generator().manual_seed(rows)
    wanted = torch.rand(rows, columns, generator=generator) < 0.3
    values, base = (torch.randn(rows, columns, generator=generator) for _ in range(2))
    layout = Layout.of(entries_of(wanted))
    assert layout.size == int(wanted.sum())
    packed = torch.full((layout.size,), torch.nan)
    layout.pack(values, packed, 2.0)
    assert torch.equal(packed.sort().values, (2.0 * values[wanted]).sort().values)
    layout.pack(values.T.contiguous().T, packed, 0.5, add=True)
    out = torch.full((rows, columns + 3), torch.nan)[:, :columns]
    layout.unpack(packed, out)
    torch.testing.assert_close(out, 2.5 * values * wanted)
    layout.unpack(packed, out, base)
    assert torch.equal(out[~wanted], base[~wanted])
    cut = slice(64, columns)
    if columns > 64:
        part = torch.empty(rows, columns - 64)
        layout.of_columns(cut).unpack(packed, part, base[:, cut])
        assert torch.equal(part, out[:, cut])


@pytest.mark.parametrize("kernel", ["mixed", "distance", "centred"])
@pytest.mark.parametrize("options", [{}, dict(drop_path=0.4), dict(dropout=0.2)], ids=str)
def test_a_step_of_micro_batches_is_that_of_each_alone(kernel, options, made):
    step(model_of(kernel), told=False)
    made.clear()
    alone = step(model_of(kernel, **options), told=False)
    assert len(made) == 6
    made.clear()
    together = step(model_of(kernel, **options), told=True)
    assert made == [(130, 70), (70, 130)]
    for mine, theirs in zip(together[0] + together[1], alone[0] + alone[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-4)
    for name, grad in together[2].items():
        assert (grad - alone[2][name]).norm() <= 1e-4 * alone[2][name].norm(), name
        assert grad.any()


def test_factors_get_their_gradient_from_the_last_one():
    model = model_of()
    accumulate_gradients(model, True)
    model(batches()[0]).sum().backward()
    assert all(grad is None for grad in gradients_of(model).values())
    assert waiting_sums(model).keys() == {"0.0", "2.2"}
    accumulate_gradients(model, False)
    model(batches()[1]).sum().backward()
    assert all(grad is not None for grad in gradients_of(model).values())
    assert not waiting_sums(model)


def test_the_next_step_sees_new_factors(made):
    told, plain = model_of(), model_of()
    for model in (told, plain):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-2)
        for _ in range(2):
            outputs, _, _ = step(model, model is told)
            optimizer.step()
            optimizer.zero_grad()
        model.last = outputs
    assert not torch.equal(told.last[0], step(model_of(), False)[0][0])
    torch.testing.assert_close(told.last, plain.last, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_dense_deltas_are_made_each_time(sparsity, made):
    alone, together = (step(model_of(sparsity=sparsity), told) for told in (False, True))
    assert len(made) == 12
    for name, grad in together[2].items():
        assert torch.equal(grad, alone[2][name])


def test_of_two_deltas_of_one_weight_the_sparse_one_is_kept(made):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(100, 70, generator=generator)
    params = [
        tuple(torch.randn(2, n, 4, generator=generator) for n in (70, rows)) for rows in (30, 60)
    ]
    found = []
    for told in (False, True):
        leaves = [tuple(p.clone().requires_grad_() for p in group) for group in params]
        kept = [Accumulator() if told else None for _ in params]
        for i, x in enumerate(batches()):
            blocks = []
            for first, sparsity, group, accumulator in zip(
                (0, 40), (0.8, 0.2), leaves, kept, strict=True
            ):
                rule, last = DeltaRule("distance"), first + group[1].shape[1]
                blocks.append(DeltaBlock(first, last, rule, sparsity, group))
                blocks[-1].accumulator = accumulator
                if told:
                    accumulator.tell(i < 2)
            adapted_linear(x, weight, None, blocks).square().sum().backward()
        found.append([p.grad for group in leaves for p in group])
    assert made[-4:] == [(30, 70), (60, 70), (60, 70), (60, 70)]
    for mine, theirs in zip(*found, strict=True):
        assert (mine - theirs).norm() <= 1e-4 * theirs.norm()


def test_under_automatic_mixed_precision():
    found = []
    for told in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            found.append(step(model_of(), told)[2])
    for name, grad in found[1].items():
        assert (grad - found[0][name]).norm() <= 1e-2 * grad.norm(), name


def test_compiled_layers_make_everything_anew():
    torch._dynamo.reset()
    model = model_of()
    alone, found = step(model_of(), False), step(torch.compile(model, backend="aot_eager"), True)
    assert not waiting_sums(model)
    for name, grad in gradients_of(model).items():
        torch.testing.assert_close(grad, alone[2][name], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0], alone[0], rtol=1e-4, atol=1e-4)


class Twice(nn.Module):
    """Calls its layers twice in one forward, or, when told to, not at all."""

    def __init__(self):
        super().__init__()
        self.inner, self.calls = model_of(), 2

    def forward(self, x):
        y = x.sum()
        for _ in range(self.calls):
            x = torch.tanh(self.inner(x))
        return y + x


def test_layers_that_are_called_twice():
    alone, together = (step(Twice(), told)[2] for told in (False, True))
    for name, grad in together.items():
        assert (grad - alone[name]).norm() <= 1e-4 * grad.norm(), name


@pytest.mark.parametrize("checkpointed", [False, True])
def test_layers_that_the_last_one_leaves_out(checkpointed):
    found = []
    for told in (False, True):
        model = Twice()
        for i, x in enumerate(batches()):
            if told:
                accumulate_gradients(model, i < 2)
            model.calls = 0 if i == 2 else 1
            x = x.requires_grad_()
            y = (
                torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
                if checkpointed
                else model(x)
            )
            y.square().sum().backward()
        settle_gradients(model)
        settle_gradients(model)  # nothing is left
        found.append(gradients_of(model))
    for name, grad in found[1].items():
        assert (grad - found[0][name]).norm() <= 1e-4 * grad.norm(), name


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
def test_changes_in_the_middle_are_refused(share):
    model = model_of()
    accumulate_gradients(model, True)
    model(batches()[0]).sum().backward()
    adapter = list_adapters(model)["0.0"]
    adapter.set_num_nonzero(int(share * adapter.size))
    with pytest.raises(RuntimeError, match="while gradients of earlier micro-batches wait"):
        model(batches()[1])
    drop_gradients(model)
    assert not waiting_sums(model)
    model(batches()[1]).sum().backward()


def test_what_waits_is_taken_up_by_another_model():
    whole, cut = model_of(), model_of()
    expected = step(whole, True)[2]
    accumulate_gradients(cut, True)
    cut(batches()[0]).square().sum().backward()
    sums = waiting_sums(cut)
    other = model_of()
    assert restore_sums(other, sums) and not restore_sums(other, {"nothing": torch.ones(1)})
    for x, more in zip(batches()[1:], (True, False), strict=True):
        accumulate_gradients(other, more)
        other(x).square().sum().backward()
    for name, grad in gradients_of(other).items():
        assert torch.equal(grad, expected[name])


def test_what_was_restored_is_settled_without_another_forward():
    cut, other = model_of(), model_of()
    accumulate_gradients(cut, True)
    cut(batches()[0]).square().sum().backward()
    assert restore_sums(other, waiting_sums(cut))
    for model in (cut, other):
        settle_gradients(model)
        assert not waiting_sums(model)
    for name, grad in gradients_of(other).items():
        assert grad.any() and torch.equal(grad, gradients_of(cut)[name])


def told_nothing(model):
    """A copy that knows of no micro-batches."""
    model = copy.deepcopy(model)
    drop_gradients(model)
    return model


def test_validation_in_the_middle_changes_nothing():
    expected = step(model_of(), True)
    model, outputs = model_of(), []
    for i, x in enumerate(batches()):
        accumulate_gradients(model, i < 2)
        y = model(x)
        y.square().sum().backward()
        factors = [p for p in model.parameters() if p.requires_grad]
        for context in (torch.no_grad(), torch.inference_mode()):
            before = [p.data.clone() for p in factors]
            for p in factors:  # as moving averages do, unseen by versions
                p.data.copy_(p.data.flip(0))
            model.eval()
            expected_here = told_nothing(model)(x)
            with context:
                torch.testing.assert_close(model(x), expected_here, rtol=1e-4, atol=1e-4)
            for p, value in zip(factors, before, strict=True):
                p.data.copy_(value)
            model.train()
        outputs.append(y.detach())
    assert all(map(torch.equal, outputs, expected[0]))
    for name, grad in gradients_of(model).items():
        assert torch.equal(grad, expected[2][name])
