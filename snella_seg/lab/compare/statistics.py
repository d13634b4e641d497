"""Means, spreads and differences of a comparison."""

import math
import statistics
from collections.abc import Iterable

from scipy.stats import t


def by_method(rows: list[dict]) -> dict[str, list[dict]]:
    """The runs that did not fail, by method, in the order of their first appearance."""
    methods: dict[str, list[dict]] = {}
    for row in rows:
        if "error" not in row:
            methods.setdefault(row["method"], []).append(row)
    return methods


def reference_method(methods: Iterable[str]) -> str:
    """What others are held against: the frozen backbone, or the first method."""
    methods = list(methods)
    return "frozen" if "frozen" in methods else methods[0]


def mean_spread(values: list[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (of the sample); None for the latter with one value."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return statistics.fmean(values), spread


def paired_difference(
    rows: list[dict], others: list[dict], key: str = "mIoU"
) -> tuple[float, float | None]:
    """Mean difference in a figure of runs with equal seeds, and its standard error.

    The standard error is None with fewer than two common seeds, the difference NaN with none.
    """
    other = {row["seed"]: row[key] for row in others if row.get(key) is not None}
    pairs = [(row[key], other.get(row["seed"])) for row in rows if row.get(key) is not None]
    differences = [one - another for one, another in pairs if another is not None]
    if not differences:
        return math.nan, None
    mean, spread = mean_spread(differences)
    return mean, None if spread is None else spread / math.sqrt(len(differences))


def confidence(error: float, count: int) -> float:
    """Half-width of the 95 % interval of a mean of ``count`` values with this standard error.

    By Student's t with ``count - 1`` degrees of freedom.
    """
    return error * float(t.ppf(0.975, count - 1))


def time_spent(rows: list[dict]) -> str:
    """CPU hours of the runs; those that were resumed in their middle record none."""
    spent = [row["cpu_seconds"] for row in rows if row.get("cpu_seconds") is not None]
    return f"{sum(spent) / 3600:.2f} hours, by {len(spent)} of {len(rows)} runs"


def class_means(rows: list[dict]) -> dict[str, float]:
    """IoU of each class, the mean over runs; classes that no run scored are left out."""
    names = dict.fromkeys(name for row in rows for name in row["classes"])
    return {
        name: statistics.fmean(row["classes"][name] for row in rows if name in row["classes"])
        for name in names
    }


def mean_curve(curves: list[list]) -> tuple[list[float], list[float], list[float], list[float]]:
    """Steps, means, minima and maxima of curves of (step, value), where all of them have one."""
    tables = [dict(map(tuple, curve)) for curve in curves]
    steps = sorted(set.intersection(*(set(table) for table in tables)))
    columns = [[table[step] for table in tables] for step in steps]
    return steps, [statistics.fmean(c) for c in columns], [*map(min, columns)], [*map(max, columns)]
