"""Competition between the weights of one matrix: only the largest ``1 - sparsity`` take part."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SPARSIFIERS = ("weighted", "soft", "hard")


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
    lower, upper, fraction = _ranks(delta.numel(), sparsity)
    magnitudes = delta.detach().abs().flatten()
    if _numpy_can(magnitudes):
        return _interpolate(magnitudes.numpy(), lower, upper, fraction)
    low, high = (magnitudes.kthvalue(k + 1).values for k in (lower, upper))
    return torch.lerp(low, high, fraction)


def _ranks(size: int, sparsity: float) -> tuple[int, int, float]:
    """The two order statistics, counted from 0, that the quantile lies between, and where."""
    sparsity = float(sparsity)
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(f"sparsity must lie in [0, 1], got {sparsity}")
    if size == 0:
        raise ValueError("cannot take the threshold of an empty matrix")
    position = sparsity * (size - 1)
    return math.floor(position), math.ceil(position), position - math.floor(position)


def _numpy_can(values: Tensor) -> bool:
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)


def _interpolate(values: np.ndarray, lower: int, upper: int, fraction: float) -> Tensor:
    ordered = np.partition(values, sorted({lower, upper}))
    low, high = torch.from_numpy(ordered[[lower, upper]]).unbind()
    return torch.lerp(low, high, fraction)


@dataclass
class Bracket:
    """Where a matrix's threshold was last time, and how far off it may be by now.

    ``threshold`` is NaN as long as nothing is known; ``width`` is relative. It only makes the next
    search quick and never changes what is found.
    """

    threshold: float = math.nan
    width: float = 0.02

    def move(self, threshold: float, hit: bool) -> None:
        """Take in a new threshold, and whether it was found within the bracket."""
        moved = abs(threshold / self.threshold - 1) if self.threshold > 0 else 0.0
        if not math.isfinite(moved):
            moved = 0.0
        shrunk = max(8 * moved, 0.7 * self.width) if hit else 2 * max(moved, self.width)
        self.width = min(max(shrunk, 2e-3), 0.1)
        self.threshold = threshold


class ThresholdSearch:
    """:func:`quantile_threshold` of a matrix that is seen tile by tile.

    On a CPU only what lies within the bracket around the last threshold is collected, and the
    exact order statistics are selected among that; where these lie outside, and on other devices,
    the whole matrix is searched.

    Args:
        size: number of entries of the matrix.
        sparsity: in [0, 1].
        bracket: is brought up to date by :meth:`finish`.
    """

    def __init__(self, size: int, sparsity: float, bracket: Bracket) -> None:
        self.size, self.sparsity, self.bracket = size, sparsity, bracket
        self.lower, self.upper, self.fraction = _ranks(size, sparsity)
        center, width = bracket.threshold, bracket.width
        self.low, self.high = center * (1 - width), center * (1 + width)
        self.extreme = self.lower == self.upper and self.lower in (0, size - 1)
        self.inside: list[np.ndarray] = []
        self.above_low = self.above_high = 0

    @torch.no_grad()
    def add(self, dense: Tensor) -> None:
        """See a tile."""
        if not _numpy_can(dense):
            return
        if self.extreme:
            magnitudes = dense.abs()
            end = magnitudes.amin() if self.lower == 0 else magnitudes.amax()
            self.inside.append(end.numpy().reshape(1))
        elif self.low < self.high:
            magnitudes = dense.abs().numpy()
            beyond_low, beyond_high = magnitudes > self.low, magnitudes > self.high
            self.above_low += np.count_nonzero(beyond_low)
            self.above_high += np.count_nonzero(beyond_high)
            beyond_low ^= beyond_high
            self.inside.append(magnitudes[beyond_low])

    def finish(self, whole: Tensor) -> Tensor:
        """Return the threshold, a 0-dim tensor, given the matrix of all tiles."""
        below = self.size - self.above_low
        hit = bool(self.inside) and self.lower >= below and self.upper < self.size - self.above_high
        if self.extreme and self.inside:
            ends = torch.from_numpy(np.concatenate(self.inside))
            threshold = ends.amin() if self.lower == 0 else ends.amax()
        elif hit:
            inside = np.concatenate(self.inside)
            threshold = _interpolate(inside, self.lower - below, self.upper - below, self.fraction)
        else:
            threshold = quantile_threshold(whole, self.sparsity)
        if _numpy_can(whole):
            self.bracket.move(float(threshold), hit)
        return threshold


def apply_threshold(delta: Tensor, threshold: Tensor, mode: str) -> Tensor:
    """Keep the entries of ``delta`` whose magnitude exceeds ``threshold``; see :func:`sparsify`."""
    with torch.no_grad():
        magnitude = delta.abs()
        if mode == "weighted":
            factor = magnitude * (magnitude > threshold)
        elif mode == "soft":
            factor = (magnitude - threshold).clamp_min(0)
        elif mode == "hard":
            factor = (magnitude > threshold).to(delta.dtype)
        else:
            raise ValueError(f"unknown sparsifier {mode!r}; choose one of {', '.join(SPARSIFIERS)}")
    return delta * factor


def sparsify(delta: Tensor, sparsity: float, mode: str = "weighted") -> Tensor:
    """Zero out the small entries of a dense weight change K.

    With t the ``sparsity``-quantile of |K| (:func:`quantile_threshold`):

    - ``weighted``: ``K * |K| * 1[|K| > t]`` (the reference implementation, hence the published
      figures; near identity at the start since K is small)
    - ``soft``: ``K * max(|K| - t, 0)`` (SNELL, equation 5)
    - ``hard``: ``K * 1[|K| > t]``

    The factor beside K is a constant in the gradient in all three. Ties at t fall out.

    Args:
        delta: K, shape (out, in).
        sparsity: share of weights that take no part, in [0, 1).
        mode: one of the three names above.

    Returns:
        Tensor of the same shape and dtype.

    Raises:
        ValueError: on a sparsity outside [0, 1) or an unknown mode.
    """
    if not 0.0 <= float(sparsity) < 1.0:
        raise ValueError(f"sparsity must lie in [0, 1), got {float(sparsity)}")
    return apply_threshold(delta, quantile_threshold(delta, sparsity), mode)
