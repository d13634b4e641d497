"""The threshold of the competition inside a matrix: a quantile of the magnitudes."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Rank(NamedTuple):
    """The two order statistics, counted from 0, that a quantile lies between, and where."""

    lower: int
    upper: int
    fraction: float


def quantile_rank(size: int, sparsity: float) -> Rank:
    """Between which order statistics of ``size`` values the ``sparsity``-quantile lies.

    Raises:
        ValueError: if sparsity lies outside [0, 1] or there are no values.
    """
    sparsity = float(sparsity)
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(f"sparsity must lie in [0, 1], got {sparsity}")
    if size == 0:
        raise ValueError("cannot take the threshold of an empty matrix")
    position = sparsity * (size - 1)
    lower = math.floor(position)
    return Rank(lower, math.ceil(position), position - lower)


def interpolate(low: Tensor, high: Tensor, fraction: float | Tensor) -> Tensor:
    """``low + fraction * (high - low)``; equal ends are the result, infinite ones too."""
    return torch.where(low == high, low, torch.lerp(low, high, fraction))


@torch.no_grad()
def quantile_threshold(dense: Tensor, sparsity: float) -> Tensor:
    """Return t, the ``sparsity``-quantile of ``|dense|`` over the whole matrix.

    Linear interpolation between the two neighbouring order statistics; NaN counts as larger than
    all else. With ``sparsity = 1 - v / size`` and ``0 < v < size`` and no ties, exactly v weights
    exceed t.

    Args:
        dense: the dense weight change, any shape, floating point, of any size.
        sparsity: in [0, 1].

    Returns:
        0-dim tensor of the same dtype, without gradient.

    Raises:
        ValueError: if sparsity lies outside [0, 1] or dense is empty.
    """
    rank = quantile_rank(dense.numel(), sparsity)
    magnitudes = dense.detach().abs().flatten()
    low, high = (magnitudes.kthvalue(k + 1).values for k in (rank.lower, rank.upper))
    return interpolate(low, high, rank.fraction)
