"""Competition between the weights of one matrix: only the largest ``1 - sparsity`` take part."""

import torch
from torch import Tensor

from .threshold import quantile_threshold

SPARSIFIERS = ("weighted", "soft", "hard", "none")


def apply_threshold(delta: Tensor, threshold: Tensor, mode: str) -> Tensor:
    """Keep the entries of ``delta`` whose magnitude exceeds ``threshold``; see :func:`sparsify`."""
    if mode == "none":
        return delta
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
    - ``none``: K, all of it; there is no competition

    The factor beside K is a constant in the gradient in all of them. Ties at t fall out.

    Args:
        delta: K, shape (out, in).
        sparsity: share of weights that take no part, in [0, 1); 0 with ``none``.
        mode: one of the names above.

    Returns:
        Tensor of the same shape and dtype.

    Raises:
        ValueError: on a sparsity outside [0, 1), an unknown mode, or a sparsity with ``none``.
    """
    if not 0.0 <= float(sparsity) < 1.0:
        raise ValueError(f"sparsity must lie in [0, 1), got {float(sparsity)}")
    if mode == "none" and sparsity:
        raise ValueError(f"sparsifier 'none' keeps all weights, got sparsity {float(sparsity)}")
    return apply_threshold(delta, quantile_threshold(delta, sparsity), mode)
