"""Competition between matrices: who gets how many of the weights that there are to give."""

import operator

import numpy as np
from numpy.typing import ArrayLike, NDArray


def allocate_budget(
    scores: ArrayLike, sizes: ArrayLike, budget: int, min_density: float = 0.0
) -> NDArray[np.int64]:
    """Share a budget of weights among matrices in proportion to their scores, by water-filling.

    ``v_l = min(size_l, lambda * score_l)`` with lambda such that the v_l sum to the budget; whole
    numbers by largest remainder. Scores that are NaN count as 0, infinite ones as very large.
    Matrices with score 0 get weights only when all others are full, in proportion to their size.

    Args:
        scores: importance of each matrix, shape (L,), not negative.
        sizes: number of weights of each matrix, shape (L,), positive whole numbers.
        budget: number of weights to give, 0 <= budget <= sum(sizes).
        min_density: share of its weights that each matrix gets at least, in [0, 1], so that a
            starved one can win weights back; lowered evenly where the budget cannot pay for it.
            0 is the published behaviour.

    Returns:
        int64 array of shape (L,) that sums to the budget, with 0 <= v_l <= size_l.

    Raises:
        ValueError: on shapes that do not match, negative scores, sizes below 1, a budget that is
            no whole number or is out of range, or a min_density outside [0, 1].
    """
    scores, sizes, budget = _checked(scores, sizes, budget, min_density)
    floors = np.ceil(min_density * sizes).astype(np.int64)
    if floors.sum() > budget:
        floors = _fill(sizes.astype(float), np.zeros_like(sizes), sizes, budget)
    scored = scores > 0
    room_scored = int(sizes[scored].sum()) + int(floors[~scored].sum())
    shares = floors.copy()
    if budget <= room_scored:
        rest = budget - int(floors[~scored].sum())
        shares[scored] = _fill(scores[scored], floors[scored], sizes[scored], rest)
    else:
        shares[scored] = sizes[scored]
        rest = budget - int(sizes[scored].sum())
        unscored = sizes[~scored]
        shares[~scored] = _fill(unscored.astype(float), floors[~scored], unscored, rest)
    return shares


def moved_share(shares: ArrayLike, others: ArrayLike) -> float:
    """Share of a budget that changes matrices from one way of sharing it to another, in [0, 1].

    ``sum |v_l - w_l| / (2 V)``, the churn between matrices. A rank correlation of the scores would
    count swaps of near-equal, tiny or full matrices, by which hardly a weight moves.

    Args:
        shares, others: weights of each matrix, shape (L,), of the same sum V; 0 where that is 0.
    """
    first, second = (np.asarray(given, dtype=np.int64) for given in (shares, others))
    return float(np.abs(first - second).sum() / max(1, 2 * first.sum()))


def _checked(
    given_scores: ArrayLike, given_sizes: ArrayLike, budget: int, min_density: float
) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
    scores = np.asarray(given_scores, dtype=np.float64)
    raw_sizes = np.asarray(given_sizes)
    sizes = raw_sizes.astype(np.int64)
    if scores.ndim != 1 or scores.shape != sizes.shape or scores.size == 0:
        raise ValueError(
            "scores and sizes must be two lists of the same length, at least 1, got shapes "
            f"{scores.shape} and {sizes.shape}"
        )
    if (sizes != raw_sizes).any() or (sizes < 1).any():
        raise ValueError(f"sizes must be positive whole numbers, got {raw_sizes.tolist()}")
    if (scores < 0).any():
        raise ValueError(f"scores must not be negative, got a minimum of {np.nanmin(scores)}")
    try:
        budget = operator.index(budget)
    except TypeError:
        raise ValueError(f"budget must be a whole number, got {budget!r}") from None
    if not 0 <= budget <= sizes.sum():
        raise ValueError(f"budget must lie in [0, {sizes.sum()}], the sum of sizes, got {budget}")
    if not 0.0 <= min_density <= 1.0:
        raise ValueError(f"min_density must lie in [0, 1], got {min_density}")
    finite = scores[np.isfinite(scores)]
    top = finite.max(initial=0.0) or 1.0
    scores = np.nan_to_num(scores / top, nan=0.0, posinf=2.0**40)
    scores[scores < 1e-200] = 0.0  # beyond what the water level can resolve
    return scores, sizes, budget


def _fill(
    scores: NDArray[np.float64], floors: NDArray[np.int64], caps: NDArray[np.int64], budget: int
) -> NDArray[np.int64]:
    """Whole numbers ``clip(lambda * score, floor, cap)`` summing to budget; all scores positive."""
    if scores.size == 0:
        return np.zeros(0, dtype=np.int64)
    # The sum grows piecewise linearly with lambda: find the piece, then interpolate.
    knots = np.unique(np.concatenate([[0.0], floors / scores, caps / scores]))
    totals = np.array([np.clip(knot * scores, floors, caps).sum() for knot in knots])
    level = np.interp(budget, totals, knots)
    wanted = np.clip(level * scores, floors, caps)
    shares = np.floor(wanted).astype(np.int64)
    order = np.argsort(shares - wanted, kind="stable")  # largest remainder first
    rest = budget - int(shares.sum())
    while rest:
        step = 1 if rest > 0 else -1
        room = shares < caps if step > 0 else shares > floors
        takers = order[room[order]][::step][: abs(rest)]
        shares[takers] += step
        rest -= step * len(takers)
    return shares
