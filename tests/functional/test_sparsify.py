import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snella_seg.functional import quantile_threshold, sparsify

DELTA = torch.tensor([[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("values", "sparsity", "message"),
    [
        ([1.0], 1.5, r"sparsity must lie in \[0, 1\], got 1.5"),
        ([1.0], float("nan"), r"sparsity must lie in \[0, 1\], got nan"),
        ([], 0.5, "cannot take the threshold of an empty matrix"),
    ],
)
def test_thresholds_that_there_are_not(values, sparsity, message):
    with pytest.raises(ValueError, match=message):
        quantile_threshold(torch.tensor(values), sparsity)


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40),
    st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_threshold_is_numpys_quantile(values, sparsity):
    found = quantile_threshold(torch.tensor(values, dtype=torch.float64), sparsity)
    assert float(found) == pytest.approx(np.quantile(np.abs(values), sparsity), abs=1e-9)


def test_the_device_independent_path_agrees():
    values = torch.randn(501)
    for sparsity in (0.0, 0.3, 0.77, 1.0):
        half = quantile_threshold(values.to(torch.bfloat16), sparsity)  # takes kthvalue
        exact = quantile_threshold(values.to(torch.bfloat16).float(), sparsity)
        torch.testing.assert_close(half.float(), exact, rtol=1e-2, atol=0)


@given(st.integers(2, 300), st.data())
@settings(max_examples=60, deadline=None)
def test_the_allocated_number_takes_part(size, data):
    count = data.draw(st.integers(1, size - 1))
    delta = torch.randperm(size).double() + 1
    assert int((sparsify(delta, 1 - count / size, "hard") != 0).sum()) == count


def test_the_three_forms():
    # |K| = 1..6: the 0.5-quantile is 3.5
    kept = torch.tensor([[0, 0, 0], [1, 1, 1]], dtype=torch.float64)
    torch.testing.assert_close(sparsify(DELTA, 0.5, "hard"), DELTA * kept)
    torch.testing.assert_close(sparsify(DELTA, 0.5), DELTA * DELTA.abs() * kept)
    torch.testing.assert_close(sparsify(DELTA, 0.5, "soft"), DELTA * (DELTA.abs() - 3.5) * kept)


def test_none_keeps_all_and_takes_no_sparsity():
    delta = torch.tensor([[0.0, -1.0], [2.0, 2.0]])
    assert torch.equal(sparsify(delta, 0.0, "none"), delta)
    with pytest.raises(ValueError, match="'none' keeps all weights, got sparsity 0.5"):
        sparsify(delta, 0.5, "none")


@pytest.mark.parametrize("mode", ["normalised", "normalised_through"])
def test_normalised_is_linear_in_scale(mode):
    dense = torch.randn(5, 7, dtype=torch.float64)
    result = sparsify(dense, 0.5, mode)
    torch.testing.assert_close(result, sparsify(dense, 0.5) / dense.square().mean().sqrt())
    torch.testing.assert_close(sparsify(3.0 * dense, 0.5, mode), 3.0 * result)
    assert not sparsify(torch.zeros(5, 7), 0.0, mode).any()


def test_weights_that_are_left_out_learn_straight_through():
    dense = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    sparsify(dense, 0.5, "normalised_through").sum().backward()
    torch.testing.assert_close(dense.grad, dense.detach().abs() / dense.square().mean().sqrt())


@pytest.mark.parametrize("mode", ["weighted", "soft", "hard", "normalised"])
def test_the_factor_is_constant_in_the_gradient(mode):
    delta = DELTA.clone().requires_grad_()
    result = sparsify(delta, 0.5, mode)
    result.sum().backward()
    torch.testing.assert_close(delta.grad * DELTA, result.detach())


def test_ties_fall_out():
    assert torch.equal(sparsify(torch.ones(3, 3), 0.5, "hard"), torch.zeros(3, 3))


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_sparsity_out_of_range(sparsity):
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        sparsify(DELTA, sparsity)


def test_unknown_mode_names_the_choices():
    with pytest.raises(ValueError, match="weighted, soft, hard"):
        sparsify(DELTA, 0.5, "sharp")
