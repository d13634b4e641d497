"""How much each matrix matters: smoothed sensitivity and its uncertainty (as in AdaLoRA)."""

import torch
from torch import Tensor

#: Bins of :func:`magnitude_histogram`: the positive numbers of bfloat16.
MAGNITUDES = 2**15


def ema_importance_(
    sensitivity: Tensor, average: Tensor, uncertainty: Tensor, beta1: float, beta2: float
) -> tuple[Tensor, Tensor]:
    """:func:`ema_importance` in place: all three tensors are overwritten."""
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0.0 <= beta <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], got {beta}")
    sensitivity.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    average.lerp_(sensitivity, 1 - beta1)
    uncertainty.lerp_(sensitivity.sub_(average).abs_(), 1 - beta2)
    return average, uncertainty


def ema_importance(
    sensitivity: Tensor, average: Tensor, uncertainty: Tensor, beta1: float, beta2: float
) -> tuple[Tensor, Tensor]:
    """Update the running average and uncertainty of a sensitivity ``I = |p * grad p|``.

    ``average' = beta1 * average + (1 - beta1) * I``
    ``uncertainty' = beta2 * uncertainty + (1 - beta2) * |I - average'|``

    Sensitivities that are not finite count as 0.

    Args:
        sensitivity: I, any shape.
        average, uncertainty: running values of the same shape; not changed.
        beta1, beta2: decay rates in [0, 1].

    Returns:
        The new average and uncertainty.

    Raises:
        ValueError: on a decay rate outside [0, 1].
    """
    return ema_importance_(sensitivity.clone(), average.clone(), uncertainty.clone(), beta1, beta2)


def importance_score(average: Tensor, uncertainty: Tensor) -> Tensor:
    """Score of one factor tensor: the mean of ``average * uncertainty``, a 0-dim tensor.

    The score of a matrix is the sum of this over its two factor tensors.
    """
    return (average * uncertainty).mean()


def magnitude_histogram(values: Tensor) -> Tensor:
    """How many values there are of each magnitude, at the resolution of bfloat16 (1/128).

    Args:
        values: any shape, floating point, finite.

    Returns:
        int64 tensor of shape (:data:`MAGNITUDES`,), smallest magnitudes first.
    """
    bits = values.detach().to(torch.float32).abs().flatten().view(torch.int32)
    return torch.bincount(bits >> 16, minlength=MAGNITUDES)


def counts_above_common_threshold(histograms: Tensor, budget: int) -> Tensor:
    """How many entries of each matrix are among the ``budget`` largest of all matrices together.

    Weights compete across matrices at once, under one threshold for all. The bin in which the
    threshold lies is shared in proportion to what each matrix has there; zeros never count.

    Args:
        histograms: one :func:`magnitude_histogram` per matrix, shape (L, bins).
        budget: number of entries to count, not negative.

    Returns:
        float64 tensor of shape (L,); it sums to the budget, or to the number of entries that are
        not zero where those are fewer.
    """
    found = histograms.double()
    found[:, 0] = 0.0
    above = found.sum(0).flip(0).cumsum(0).flip(0)  # of a bin and all larger ones
    later = above - found.sum(0)
    taken = ((budget - later) / (above - later).clamp_min(1.0)).clamp(0.0, 1.0)
    return (found * taken).sum(1)
