"""How the threshold of :func:`snella_seg.functional.quantile_threshold` is found fast on a CPU."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..functional.threshold import Rank, interpolate, quantile_rank, quantile_threshold

#: Entries of a large matrix from which its threshold is guessed.
SAMPLE = 1 << 14
#: Relative width of a bracket above which a sample of the matrix tells more.
WIDEST = 0.02


@torch.no_grad()
def find_threshold(dense: Tensor, sparsity: float) -> Tensor:
    """The value of :func:`quantile_threshold`, by selection among a part of the entries.

    Arguments, result and errors are those of that function.
    """
    if not _numpy_can(dense):
        return quantile_threshold(dense, sparsity)
    rank = quantile_rank(dense.numel(), sparsity)
    values = dense.detach().abs().flatten().numpy()
    found = None
    if len(values) > 4 * SAMPLE:
        selection = _Selection(*_guess(values, rank))
        selection.add(values)
        found = selection.select(rank)
    return _order_statistic(values, rank) if found is None else found


def _numpy_can(values: Tensor) -> bool:
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)


def _order_statistic(values: np.ndarray, rank: Rank) -> Tensor:
    ordered = np.partition(values, sorted({rank.lower, rank.upper}))
    low, high = torch.from_numpy(ordered[[rank.lower, rank.upper]]).unbind()
    return interpolate(low, high, rank.fraction)


def _guess(values: np.ndarray, rank: Rank) -> tuple[float, float]:
    """Between which values the order statistics should lie, from a sample."""
    sample = np.sort(values[:: len(values) // SAMPLE | 1])
    share = rank.lower / (len(values) - 1)
    spread = 4 * math.sqrt(len(sample) * share * (1 - share)) + 4
    first, last = (round(share * (len(sample) - 1) + side * spread) for side in (-1, 1))
    low = sample[first] if first >= 0 else -math.inf
    high = sample[last] if last < len(sample) else math.inf
    return float(low), float(high)


class _Selection:
    """Exact order statistics, selected among the values in (low, high]; the others are counted."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high
        self.inside: list[np.ndarray] = []
        self.up_to_low = self.up_to_high = 0
        self.masks = np.empty((2, 0), dtype=bool)

    def add(self, values: np.ndarray) -> None:
        if self.masks.shape[1] < len(values):
            self.masks = np.empty((2, len(values)), dtype=bool)
        low, high = self.masks[:, : len(values)]
        np.less_equal(values, self.low, out=low)  # NaN counts as large, as in a sort
        np.less_equal(values, self.high, out=high)
        self.up_to_low += int(np.count_nonzero(low))
        self.up_to_high += int(np.count_nonzero(high))
        high ^= low
        self.inside.append(values[high])

    def add_counted(self, inside: np.ndarray, up_to_low: int, up_to_high: int) -> None:
        """See values that were looked at already: those inside, and how many lie below."""
        self.inside.append(inside)
        self.up_to_low += up_to_low
        self.up_to_high += up_to_high

    def select(self, rank: Rank) -> Tensor | None:
        """The interpolated value, or None where an order statistic lies outside."""
        below = self.up_to_low
        if rank.lower < below or rank.upper >= self.up_to_high:
            return None
        inside = Rank(rank.lower - below, rank.upper - below, rank.fraction)
        return _order_statistic(np.concatenate(self.inside), inside)


@dataclass
class Bracket:
    """Where a matrix's threshold is expected, and how far off it may be.

    It is expected to go on as it moved last. ``threshold`` is NaN as long as nothing is known;
    ``drift`` and ``width`` are relative. A bracket only makes the next search quick and never
    changes what is found.
    """

    threshold: float = math.nan
    drift: float = 1.0
    width: float = 0.02

    @property
    def ends(self) -> tuple[float, float]:
        """The values between which the next threshold should lie."""
        center = self.threshold * self.drift
        return center * (1 - self.width), center * (1 + self.width)

    def move(self, threshold: float) -> None:
        """Take in a new threshold."""
        known = self.threshold > 0 and threshold > 0 and math.isfinite(threshold)
        error = abs(threshold / (self.threshold * self.drift) - 1) if known else 0.0
        jumped = error > 0.15  # as after a change of the sparsity
        moved = threshold / self.threshold if known and not jumped else 1.0
        self.drift = min(max(moved, 0.8), 1.25)
        self.width = min(max(3 * error, 0.9 * self.width, 5e-4), 0.05)
        self.threshold = threshold


class ThresholdSearch:
    """:func:`find_threshold` of a matrix that is seen tile by tile.

    On a CPU only what lies within the bracket is collected, and the exact order statistics are
    selected among that; where they lie outside, and on other devices, the whole is searched.

    Args:
        size: number of entries of the matrix.
        sparsity: in [0, 1].
        bracket: is brought up to date by :meth:`finish`.
    """

    def __init__(self, size: int, sparsity: float, bracket: Bracket) -> None:
        self.sparsity, self.bracket = sparsity, bracket
        self.rank = quantile_rank(size, sparsity)
        trusted = bracket.threshold > 0 and bracket.width <= WIDEST
        self.selection = _Selection(*bracket.ends) if trusted else None
        self.at_end = self.rank.lower == self.rank.upper and self.rank.lower in (0, size - 1)
        self.ends: list[Any] = []

    @torch.no_grad()
    def add(self, dense: Tensor) -> None:
        """See a tile."""
        if not _numpy_can(dense):
            return
        if self.at_end:
            self.ends.append(self._end(dense.abs().flatten().numpy()))
        elif self.selection is not None:
            self.selection.add(dense.abs().flatten().numpy())

    @property
    def range(self) -> tuple[float, float] | None:
        """Entries whose magnitude lies in (low, high] tell the threshold; None: all do."""
        found = None if self.at_end else self.selection
        return None if found is None else (found.low, found.high)

    def add_counted(self, inside: Tensor, up_to_low: int, up_to_high: int) -> None:
        """See the whole matrix at once: what lies within :attr:`range`, and how many are at most
        its ends."""
        assert self.selection is not None
        self.selection.add_counted(inside.abs().numpy(), up_to_low, up_to_high)

    def selected(self) -> Tensor | None:
        """The threshold by what was seen within :attr:`range`, or None where it lies outside."""
        found = None if self.selection is None else self.selection.select(self.rank)
        if found is not None:
            self.bracket.move(float(found))
        return found

    def finish(self, whole: Tensor) -> Tensor:
        """Return the threshold, a 0-dim tensor, given the matrix of all tiles."""
        if self.at_end and self.ends:
            return torch.from_numpy(self._end(np.stack(self.ends), keepdims=True))[0]
        found = self.selected()
        if found is not None:
            return found
        threshold = find_threshold(whole, self.sparsity)
        if _numpy_can(whole):
            self.bracket.move(float(threshold))
        return threshold

    def _end(self, values: np.ndarray, keepdims: bool = False) -> Any:
        """The least or the largest value; NaN is larger than all others, as in a sort."""
        reduce: Any = (np.fmin if self.rank.lower == 0 else np.maximum).reduce
        return reduce(values, keepdims=keepdims)
