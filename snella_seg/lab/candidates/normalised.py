"""Relatives of the sparsifier 'normalised' that were tried beside it."""

import torch
from torch import Tensor

from ...functional import register_sparsifier


def rooted(dense: Tensor, threshold: Tensor) -> Tensor:
    """``sqrt(|K| / r) 1[|K| > t]`` with r the root mean square of K: nearer to K itself."""
    size = dense.square().mean().sqrt().clamp_min(torch.finfo(dense.dtype).tiny)
    return (dense.abs() / size).sqrt() * (dense.abs() > threshold)


register_sparsifier("rooted", rooted)
# K itself where it takes part, but weights that are left out go on learning
register_sparsifier(
    "hard_through", lambda k, t: (k.abs() > t).to(k.dtype), gradient=lambda k, t: torch.ones_like(k)
)
