"""Matrices of one shape go together: one launch for all, the same bits as alone."""

import sys
from pathlib import Path

import pytest
import torch
from gpu_matrices import RULES, group_of, make_params

from snella_seg.engine import DeltaBlock, adapted_weight
from snella_seg.engine import gpu as fast
from snella_seg.engine.gpu import launch
from snella_seg.functional import DeltaRule

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))
from launches import Launches  # noqa: E402


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_in_company_the_same_bits_as_alone(rule, device):
    params, sparsities, grads = group_of(rule, device)
    count = len(params[0])
    needs = [(True,) * count, (False,) * count, (True, *(False,) * (count - 1))]
    base = torch.randn(3, 33, 17, device=device)
    made, states = fast.launch_deltas(params, rule, sparsities, base, amount=0.5)
    again = torch.empty_like(made)
    found = fast.launch_backwards(params, rule, states, grads, needs, base, again, 0.5)
    assert torch.equal(again, made)
    scattered = [tuple(t.clone() for t in state) for state in states]  # no longer side by side
    from_copies = fast.launch_backwards(params, rule, scattered, grads, needs)
    for i in range(3):
        delta, state = fast.launch_delta(params[i], rule, sparsities[i], base[i], amount=0.5)
        alone = fast.launch_backward(params[i], rule, state, grads[i], needs[i])
        assert torch.equal(delta, made[i])
        assert all(torch.equal(a, b) for a, b in zip(state, states[i], strict=True))
        for each in (found[i], from_copies[i]):
            assert [g is not None for g in each] == list(needs[i])
            pairs = zip(each, alone, strict=True)
            assert all(a is b or torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_parts_of_large_layers_are_kept_by_and_by(rule, device, monkeypatch):
    params, sparsities, grads = group_of(rule, device, 2, 40, 140)
    _, states = fast.launch_deltas(params, rule, sparsities[:2])
    at_once = fast.launch_backwards(params, rule, states, grads)
    monkeypatch.setattr(launch, "PARTS", 1)
    with Launches() as seen:
        by_and_by = fast.launch_backwards(params, rule, states, grads)
    assert seen.kernels["factors_kernel"] == seen.kernels["fold_kernel"] == 5
    for a, b in zip(at_once, by_and_by, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_states_of_another_rule_are_refused(device):
    params, sparsities, grads = group_of(DeltaRule("centred", "weighted"), device, 2)
    _, states = fast.launch_deltas(params, DeltaRule("centred", "weighted"), sparsities)
    with pytest.raises(ValueError, match="2 matrices with 52 numbers each.*got .51, 51."):
        fast.launch_backwards(params, DeltaRule("centred", "normalised"), states, grads)


def test_matrices_that_differ_cannot_go_together(device):
    params, sparsities, _ = group_of(DeltaRule(), device, 2)
    params[1] = make_params(33, 18, 2, 3, "mixed", device)
    with pytest.raises(ValueError, match="must be alike in shapes"):
        fast.launch_deltas(params, DeltaRule(), sparsities)


def attention_blocks(rule, device, rows):
    params, sparsities, _ = group_of(rule, device, 3, 8)
    recipes = zip(rows, sparsities, params, strict=True)
    return [DeltaBlock(*r, rule, s, p) for r, s, p in recipes]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_q_k_and_v_take_the_launches_of_one_matrix(rule, device, monkeypatch):
    monkeypatch.setattr(DeltaBlock, "by_triton", True)
    weight = torch.randn(28, 17, device=device)

    def step(rows):
        blocks = attention_blocks(rule, device, rows)
        for tensor in (t for block in blocks for t in block.params):
            tensor.requires_grad_()
        with Launches() as seen:
            merged = adapted_weight(weight, blocks)
            merged.square().sum().backward()
        grads = [t.grad for block in blocks for t in block.params]
        return seen.kernels.total(), [merged[slice(*r)] - weight[slice(*r)] for r in rows], grads

    even, deltas, grads = step([(0, 8), (8, 16), (16, 24)])
    spread, _, _ = step([(0, 8), (10, 18), (20, 28)])
    uneven, others, _ = step([(0, 8), (8, 16), (20, 28)])
    of_one = {"mixed": 14, "centred": 14, "distance": 11}[rule.kernel]
    assert even == spread == of_one + 2 * 2  # the two others' factors are prepared
    assert uneven == even + of_one - 2
    for a, b in zip(deltas, others, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert all(g is not None for g in grads)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_nothing_is_launched_beside_the_kernels(rule, device):
    params, sparsities, grads = group_of(rule, device)
    with Launches() as seen:
        _, states = fast.launch_deltas(params, rule, sparsities)
        fast.launch_backwards(params, rule, states, grads, out=torch.empty_like(grads))
    assert not seen.operators and seen.kernels["prepare_kernel"] == 2 * len(params)
