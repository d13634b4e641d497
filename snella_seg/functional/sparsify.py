"""Competition between the weights of one matrix: only the largest ``1 - sparsity`` take part."""

import math

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
    sparsity = float(sparsity)
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(f"sparsity must lie in [0, 1], got {sparsity}")
    magnitudes = delta.detach().abs().flatten()
    if magnitudes.numel() == 0:
        raise ValueError("cannot take the threshold of an empty matrix")
    position = sparsity * (magnitudes.numel() - 1)
    lower, upper = math.floor(position), math.ceil(position)
    if magnitudes.device.type == "cpu" and magnitudes.dtype in (torch.float32, torch.float64):
        ordered = np.partition(magnitudes.numpy(), sorted({lower, upper}))
        low, high = magnitudes.new_tensor(ordered[[lower, upper]]).unbind()
    else:
        low, high = (magnitudes.kthvalue(k + 1).values for k in (lower, upper))
    return torch.lerp(low, high, position - lower)


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
