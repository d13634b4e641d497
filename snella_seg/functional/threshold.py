"""The exact threshold of the competition inside a matrix, and how to find it quickly."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: Entries of a large matrix from which its threshold is guessed.
SAMPLE = 1 << 14
#: Relative width of a bracket above which a sample of the matrix tells more.
WIDEST = 0.02


@torch.no_grad()
def quantile_threshold(delta: Tensor, sparsity: float) -> Tensor:
    """Return t, the ``sparsity``-quantile of ``|delta|`` over the whole matrix.

    Linear interpolation between the two neighbouring order statistics. With
    ``sparsity = 1 - v / size`` and ``0 < v < size`` and no ties, exactly v weights exceed t.

    Args:
        delta: the dense weight change, any shape, floating point, of any size.
        sparsity: in [0, 1].

    Returns:
        0-dim tensor of delta's dtype, without gradient.

    Raises:
        ValueError: if sparsity lies outside [0, 1] or delta is empty.
    """
    rank = _Rank.of(delta.numel(), sparsity)
    magnitudes = delta.detach().abs().flatten()
    if not _numpy_can(magnitudes):
        low, high = (magnitudes.kthvalue(k + 1).values for k in (rank.lower, rank.upper))
        return torch.lerp(low, high, rank.fraction)
    values = magnitudes.numpy()
    found = None
    if len(values) > 4 * SAMPLE:
        selection = _Selection(*_guess(values, rank))
        selection.add(values)
        found = selection.select(rank)
    return _interpolate(values, rank.lower, rank.upper, rank.fraction) if found is None else found


@dataclass(frozen=True)
class _Rank:
    """The two order statistics, counted from 0, that a quantile lies between, and where."""

    size: int
    lower: int
    upper: int
    fraction: float

    @classmethod
    def of(cls, size: int, sparsity: float) -> "_Rank":
        sparsity = float(sparsity)
        if not 0.0 <= sparsity <= 1.0:
            raise ValueError(f"sparsity must lie in [0, 1], got {sparsity}")
        if size == 0:
            raise ValueError("cannot take the threshold of an empty matrix")
        position = sparsity * (size - 1)
        lower = math.floor(position)
        return cls(size, lower, math.ceil(position), position - lower)


def _numpy_can(values: Tensor) -> bool:
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)


def _interpolate(values: np.ndarray, lower: int, upper: int, fraction: float) -> Tensor:
    ordered = np.partition(values, sorted({lower, upper}))
    low, high = torch.from_numpy(ordered[[lower, upper]]).unbind()
    return torch.lerp(low, high, fraction)


def _guess(values: np.ndarray, rank: _Rank) -> tuple[float, float]:
    """Between which values the order statistics should lie, from a sample."""
    sample = np.sort(values[:: len(values) // SAMPLE | 1])
    share = rank.lower / (rank.size - 1)
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
        self.up_to_low += np.count_nonzero(low)
        self.up_to_high += np.count_nonzero(high)
        high ^= low
        self.inside.append(values[high])

    def select(self, rank: _Rank) -> Tensor | None:
        """The interpolated value, or None where an order statistic lies outside."""
        below = self.up_to_low
        if rank.lower < below or rank.upper >= self.up_to_high:
            return None
        inside = np.concatenate(self.inside)
        return _interpolate(inside, rank.lower - below, rank.upper - below, rank.fraction)


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
    """:func:`quantile_threshold` of a matrix that is seen tile by tile.

    On a CPU only what lies within the bracket is collected, and the exact order statistics are
    selected among that; where they lie outside, and on other devices, the whole is searched.

    Args:
        size: number of entries of the matrix.
        sparsity: in [0, 1].
        bracket: is brought up to date by :meth:`finish`.
    """

    def __init__(self, size: int, sparsity: float, bracket: Bracket) -> None:
        self.sparsity, self.bracket = sparsity, bracket
        self.rank = _Rank.of(size, sparsity)
        trusted = bracket.threshold > 0 and bracket.width <= WIDEST
        self.selection = _Selection(*bracket.ends) if trusted else None
        self.at_end = self.rank.lower == self.rank.upper and self.rank.lower in (0, size - 1)
        self.ends: list[Tensor] = []

    @torch.no_grad()
    def add(self, dense: Tensor) -> None:
        """See a tile."""
        if not _numpy_can(dense):
            return
        if self.at_end:
            magnitudes = dense.abs()
            self.ends.append(magnitudes.amin() if self.rank.lower == 0 else magnitudes.amax())
        elif self.selection is not None:
            self.selection.add(dense.abs().flatten().numpy())

    def finish(self, whole: Tensor) -> Tensor:
        """Return the threshold, a 0-dim tensor, given the matrix of all tiles."""
        if not _numpy_can(whole):
            return quantile_threshold(whole, self.sparsity)
        if self.at_end and self.ends:
            ends = torch.stack(self.ends)
            return ends.amin() if self.rank.lower == 0 else ends.amax()
        found = None if self.selection is None else self.selection.select(self.rank)
        threshold = quantile_threshold(whole, self.sparsity) if found is None else found
        self.bracket.move(float(threshold))
        return threshold
