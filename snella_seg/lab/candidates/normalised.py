"""Sparsifiers whose delta is linear in the scale of K: magnitudes are relative to their own mean.

``delta = K * f`` with ``f = (|K| / r)^p * 1[|K| > t]`` and ``r = sqrt(mean K^2)`` over the matrix.
The published form has ``f = |K| 1[|K| > t]``, which makes the delta quadratic in K: it starts
slowly, and its best learning rate depends on width, rank and sparsity.
"""

import torch
from torch import Tensor

from ...functional import register_sparsifier


def relative(dense: Tensor) -> Tensor:
    """``|K| / r``; 0 where all of K is."""
    size = dense.square().mean().sqrt()
    return dense.abs() / size.clamp_min(torch.finfo(dense.dtype).tiny)


def normalised(dense: Tensor, threshold: Tensor) -> Tensor:
    """p = 1."""
    return relative(dense) * (dense.abs() > threshold)


def rooted(dense: Tensor, threshold: Tensor) -> Tensor:
    """p = 1/2, nearer to K itself."""
    return relative(dense).sqrt() * (dense.abs() > threshold)


register_sparsifier("normalised", normalised)
register_sparsifier("rooted", rooted)
# the same, but weights that are left out go on learning
register_sparsifier("normalised_through", normalised, gradient=lambda k, t: relative(k))
register_sparsifier(
    "hard_through", lambda k, t: (k.abs() > t).to(k.dtype), gradient=lambda k, t: torch.ones_like(k)
)
