import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snella_seg.functional import SCHEDULES, allocate_budget, budget_schedule, moved_share

scores_of = st.one_of(
    st.floats(0, 1e6), st.just(0.0), st.just(float("nan")), st.just(float("inf")), st.just(1e-300)
)


@st.composite
def problems(draw):
    length = draw(st.integers(1, 12))
    sizes = draw(st.lists(st.integers(1, 10**7), min_size=length, max_size=length))
    scores = draw(st.lists(scores_of, min_size=length, max_size=length))
    return scores, sizes, draw(st.integers(0, sum(sizes))), draw(st.sampled_from([0, 1e-3, 0.3, 1]))


@given(problems())
@settings(max_examples=300, deadline=None)
def test_sums_exactly_and_keeps_to_the_caps(problem):
    scores, sizes, budget, min_density = problem
    shares = allocate_budget(scores, sizes, budget, min_density)
    assert shares.dtype == np.int64 and shares.sum() == budget
    assert (shares >= 0).all() and (shares <= sizes).all()
    floors = np.ceil(min_density * np.array(sizes))
    if floors.sum() <= budget:
        assert (shares >= floors).all()


@given(
    st.lists(st.tuples(st.floats(1e-6, 1e6), st.integers(1, 10**6)), min_size=1, max_size=12),
    st.floats(0, 1),
)
@settings(max_examples=200, deadline=None)
def test_is_water_filling(pairs, part):
    scores, sizes = (np.array(column) for column in zip(*pairs, strict=True))
    budget = int(part * sizes.sum())
    shares = allocate_budget(scores, sizes, budget)
    low, high = 0.0, (sizes / scores).max()
    for _ in range(200):  # bisection for the level, independent of the code under test
        level = (low + high) / 2
        low, high = (
            (level, high) if np.minimum(sizes, level * scores).sum() < budget else (low, level)
        )
    assert np.abs(shares - np.minimum(sizes, high * scores)).max() <= 1 + 1e-6 * sizes.max()


def test_hand_worked():
    # lambda = 10: 1 -> 10, 2 -> 20; the third is full at 5
    assert allocate_budget([1, 2, 9], [100, 100, 5], 35).tolist() == [10, 20, 5]


@pytest.mark.parametrize("scores", [[0, 0, 0], [2, 2, 2], [float("nan")] * 3, [1e300] * 3])
def test_equal_scores_share(scores):
    assert allocate_budget(scores, [50, 50, 50], 60).tolist() == [20, 20, 20]


def test_scores_of_zero_come_last():
    assert allocate_budget([1, 0], [10, 10], 8).tolist() == [8, 0]
    assert allocate_budget([1, 0], [10, 10], 13).tolist() == [10, 3]
    assert allocate_budget([1, 0], [10, 10], 8, min_density=0.2).tolist() == [6, 2]


def test_infinite_scores_come_first():
    assert allocate_budget([1, float("inf"), 0], [10, 10, 10], 15).tolist() == [5, 10, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [3], 1), "same length"),
        (([], [], 0), "same length"),
        (([1, -2], [3, 3], 1), "negative"),
        (([1, 2], [3, 0], 1), "positive whole"),
        (([1, 2], [3, 2.5], 1), "positive whole"),
        (([1, 2], [3, 3], 7), r"\[0, 6\]"),
        (([1, 2], [3, 3], -1), r"\[0, 6\]"),
        (([1, 2], [3, 3], 2.5), "whole number"),
        (([1, 2], [3, 3], 2, 1.5), "min_density"),
    ],
)
def test_invalid_arguments_say_why(arguments, message):
    with pytest.raises(ValueError, match=message):
        allocate_budget(*arguments)


def test_the_moved_share_is_that_of_weights_which_change_matrices():
    assert moved_share([5, 3, 2], [5, 3, 2]) == 0
    assert moved_share([5, 3, 2], [3, 3, 4]) == pytest.approx(0.2)
    assert moved_share([4, 0], [0, 4]) == 1 and moved_share([0, 0], [0, 0]) == 0


def test_schedule_is_cubic_between_its_ends():
    budgets = [budget_schedule(e, 10, 1000, 200) for e in range(11)]
    assert budgets[0] == 1000 and budgets[10] == 200
    assert budgets[5] == 200 + 800 // 8
    assert sorted(budgets, reverse=True) == budgets


def test_warmup_and_final_epochs():
    budgets = [budget_schedule(e, 8, 1000, 200, warmup=2, final=1) for e in range(8)]
    assert budgets[:3] == [1000] * 3 and budgets[3] < 1000
    assert budgets[7] == 200 and budgets[6] > 200
    assert budget_schedule(9, 10, 1000, 200, final=3) == 200


@pytest.mark.parametrize("curve", SCHEDULES)
@pytest.mark.parametrize("total", [2, 3, 10, 41])
def test_every_schedule_falls_from_start_to_target(curve, total):
    budgets = [budget_schedule(e, total, 1000, 200, 0, 1, curve) for e in range(total)]
    assert budgets[0] == 1000 and budgets[-1] == 200
    assert budgets == sorted(budgets, reverse=True)
    cubic = [budget_schedule(e, total, 1000, 200, 0, 1) for e in range(total)]
    assert all(one >= other for one, other in zip(budgets, cubic, strict=True))
    warm = [budget_schedule(e, total + 7, 1000, 200, 5, 3, curve) for e in range(total + 7)]
    assert warm == [1000] * 5 + budgets + [200] * 2


def test_the_shape_of_the_schedules():
    curves = {c: [budget_schedule(e, 9, 800, 0, 0, 1, c) for e in range(9)] for c in SCHEDULES}
    assert curves["cubic"][4] == 100
    assert curves["late"] == [800, 765, 675, 546, 400, 253, 125, 34, 0]
    assert curves["dense_first_half"] == [800] * 5 + [337, 100, 12, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 3, 10, 5, 0, 1, "quartic"), "unknown schedule 'quartic'"),
        ((0, 3, 10, 5, 2, 1), "shorter than its warm-up"),
        ((0, 0, 10, 5), "positive"),
        ((-1, 3, 10, 5), "negative"),
        ((0, 3, -10, 5), "negative"),
    ],
)
def test_invalid_schedules_say_why(arguments, message):
    with pytest.raises(ValueError, match=message):
        budget_schedule(*arguments)
