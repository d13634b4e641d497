"""One threshold, however it is found."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snella_seg.engine import Bracket, find_threshold, threshold_search
from snella_seg.engine.threshold_search import ThresholdSearch
from snella_seg.functional import quantile_threshold

NAN, INF = math.nan, math.inf


@st.composite
def matrices(draw):
    """Random, constant and tied values, with NaN and infinities among them."""
    count = draw(st.integers(2, 60))
    kind = draw(st.sampled_from(["random", "constant", "tied", "odd", "all odd"]))
    values = {
        "random": st.floats(-10, 10, width=32),
        "constant": st.just(draw(st.sampled_from([0.0, -1.5, INF]))),
        "tied": st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0]),
        "odd": st.one_of(st.floats(-3, 3, width=32), st.sampled_from([NAN, INF, -INF])),
        "all odd": st.sampled_from([NAN, INF]),
    }[kind]
    return torch.tensor(draw(st.lists(values, min_size=count, max_size=count)))


def seen_in_tiles(dense: torch.Tensor, sparsity: float, bracket: Bracket) -> torch.Tensor:
    search = ThresholdSearch(dense.numel(), sparsity, bracket)
    for part in dense.split(7):
        search.add(part)
    return search.finish(dense)


@given(matrices(), st.one_of(st.sampled_from([0.0, 1.0, 0.5]), st.floats(0, 1)))
@settings(max_examples=300, deadline=None)
def test_all_searches_agree(dense, sparsity):
    expected = quantile_threshold(dense, sparsity)
    bracket = Bracket()
    found = [find_threshold(dense, sparsity)]
    found += [seen_in_tiles(dense, sparsity, bracket) for _ in range(3)]  # the bracket moves along
    for threshold in found:
        torch.testing.assert_close(threshold, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("odd", [NAN, INF])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9, 1.0])
def test_selection_in_large_matrices_agrees(odd, sparsity, monkeypatch):
    monkeypatch.setattr(threshold_search, "SAMPLE", 64)
    dense = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    dense[::97] = odd
    expected = quantile_threshold(dense, sparsity)
    found = find_threshold(dense, sparsity)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_a_nan_does_not_hide_the_smallest_weight():
    dense = torch.tensor([3.0, NAN, -1.0, 2.0])
    assert seen_in_tiles(dense, 0.0, Bracket()) == quantile_threshold(dense, 0.0) == 1.0
    assert seen_in_tiles(dense, 1.0, Bracket()).isnan() and quantile_threshold(dense, 1.0).isnan()
