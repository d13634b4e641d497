"""The choice of learning rates, on a grid that grows while the best rate lies at its edge."""

import statistics
from collections.abc import Callable, Iterable

#: How often a grid may grow, on both sides together.
GROWTHS = 4


class ComparisonFailed(RuntimeError):
    """A comparison some of whose runs failed."""


def choose_rates(
    asked: Iterable[tuple[str, float]],
    judge: Callable[[list[tuple[str, float]]], list[dict]],
    key: str,
) -> dict[str, float]:
    """Choose the best rate of each method, by the mean mIoU of the runs that judge it.

    A rate one of whose runs failed (its loss became infinite) is no choice.

    Args:
        asked: pairs of method and rate.
        judge: trains what it is asked for and returns a row for each run, with ``method``, the rate
            under ``key``, and ``mIoU`` or ``error``.
        key: ``'lr'`` or ``'head_lr'``.

    Returns:
        Method -> rate, in the order of their first appearance.

    Raises:
        ComparisonFailed: when all runs of a method failed.
    """
    rows, pairs = [], list(asked)
    methods = list(dict.fromkeys(method for method, _ in pairs))
    for _ in range(GROWTHS + 1):
        rows += judge(pairs)
        pairs = [
            (method, rate)
            for method in methods
            if (rate := _beyond(_of(rows, method), key)) is not None
        ]
        if not pairs:
            break
    return {method: best_rate(_of(rows, method), key) for method in methods}


def mean_scores(rows: list[dict], key: str) -> dict[float, float | None]:
    """Rate -> mean mIoU of its runs, ascending; None where one of them failed."""
    by_rate: dict[float, list[float | None]] = {}
    for row in rows:
        by_rate.setdefault(row[key], []).append(None if "error" in row else row["mIoU"])
    return {
        rate: None if None in found else statistics.fmean(found)
        for rate, found in sorted(by_rate.items())
    }


def best_rate(rows: list[dict], key: str) -> float:
    """The rate with the best mean.

    Raises:
        ComparisonFailed: when there is none.
    """
    scores = {rate: mean for rate, mean in mean_scores(rows, key).items() if mean is not None}
    if not scores:
        raise ComparisonFailed(
            f"all runs of {rows[0]['method']} that judge its learning rate failed, the first: "
            f"{next(row['error'] for row in rows if 'error' in row)}"
        )
    middle = (len(scores) - 1) / 2  # of equal ones that which is farthest from the edges
    order = {rate: (mean, -abs(i - middle)) for i, (rate, mean) in enumerate(scores.items())}
    return max(order, key=order.get)


def _beyond(rows: list[dict], key: str) -> float | None:
    """The rate by which a grid grows, or None where the best one lies within it."""
    scores = mean_scores(rows, key)
    rates = list(scores)
    if len(rates) < 2 or all(mean is None for mean in scores.values()):
        return None
    best = best_rate(rows, key)
    if best == rates[-1]:
        return _round(best * best / rates[-2])
    return _round(best * best / rates[1]) if best == rates[0] else None


def _round(rate: float) -> float:
    """Two significant digits: 0.1 rather than 0.09999."""
    return float(f"{rate:.1e}")


def _of(rows: list[dict], method: str) -> list[dict]:
    return [row for row in rows if row["method"] == method]
