"""The grid of learning rates grows while the best rate lies at its edge, and no further."""

import math

import pytest

from snella_seg.lab.compare.rates import GROWTHS, ComparisonFailed, choose_rates, mean_scores


class Judge:
    """Scores by a parabola over the logarithm of the rate; far above its peak training fails."""

    def __init__(self, seeds=1, **peaks):
        self.seeds, self.peaks, self.asked = seeds, peaks, []

    def __call__(self, pairs):
        self.asked.append(list(pairs))
        return [self.row(m, rate, seed) for m, rate in pairs for seed in range(self.seeds)]

    def row(self, method, rate, seed):
        row = {"method": method, "lr": rate, "seed": seed}
        distance = math.log10(rate / self.peaks[method])
        if distance > 1.7 and seed == 0:
            return {**row, "error": "the loss became nan: lower the learning rate"}
        return {**row, "mIoU": 50 - distance**2 + 0.01 * seed}


def test_a_best_rate_within_the_grid_is_taken():
    judge = Judge(a=1e-3)
    assert choose_rates([("a", r) for r in (1e-4, 1e-3, 1e-2)], judge, "lr") == {"a": 1e-3}
    assert len(judge.asked) == 1


def test_each_method_grows_its_own_grid():
    judge = Judge(seeds=2, a=0.03, b=3e-5, c=1e-3)
    grid = (3e-4, 1e-3, 3e-3)
    chosen = choose_rates([(m, r) for m in "abc" for r in grid], judge, "lr")
    assert chosen["a"] == pytest.approx(0.03, rel=0.3) and chosen["c"] == 1e-3
    assert chosen["b"] == pytest.approx(3e-5, rel=0.3)
    assert judge.asked[1] == [("a", 9e-3), ("b", 9e-5)]
    assert all(method != "c" for pairs in judge.asked[1:] for method, _ in pairs)


def test_a_grid_does_not_grow_for_ever():
    judge = Judge(a=1e6)
    choose_rates([("a", 1e-3), ("a", 1e-2)], judge, "lr")
    assert len(judge.asked) == GROWTHS + 1


def test_a_rate_that_diverges_is_no_choice():
    judge = Judge(seeds=2, a=1e-4)
    rows = judge([("a", 1e-4), ("a", 1e-1)])
    assert mean_scores(rows, "lr") == {1e-4: pytest.approx(50.005), 1e-1: None}
    assert choose_rates([("a", 1e-5), ("a", 1e-4), ("a", 1e-1)], judge, "lr")["a"] == pytest.approx(
        1e-4
    )


def test_all_rates_fail():
    with pytest.raises(ComparisonFailed, match="all runs of a that judge .* the loss became nan"):
        choose_rates([("a", 1.0), ("a", 10.0)], Judge(a=1e-6), "lr")


def test_a_single_rate_is_not_extended():
    judge = Judge(a=1e-3)
    assert choose_rates([("a", 1e-2)], judge, "lr") == {"a": 1e-2} and len(judge.asked) == 1
