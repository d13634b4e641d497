"""Distances without what all inputs, or all outputs, have in common."""

from torch import Tensor

from ...functional import distance_kernel, register_kernel


def centred_kernel(in_factors: Tensor, out_factors: Tensor, *, scale: float) -> Tensor:
    """D minus its means over inputs and over outputs, plus the mean of all, (out, in).

    A distance is never negative, so D has large means by rows and columns, which move all weights
    of a neuron alike. Double centring, as in multidimensional scaling, leaves what tells weights
    apart; for squared distances it would leave the product of the factors.
    """
    dense = distance_kernel(in_factors, out_factors, scale)
    return dense - dense.mean(0, keepdim=True) - dense.mean(1, keepdim=True) + dense.mean()


def column_centred_kernel(in_factors: Tensor, out_factors: Tensor, *, scale: float) -> Tensor:
    """D minus its means over outputs alone, (out, in)."""
    dense = distance_kernel(in_factors, out_factors, scale)
    return dense - dense.mean(0, keepdim=True)


def row_centred_kernel(in_factors: Tensor, out_factors: Tensor, *, scale: float) -> Tensor:
    """D minus its means over inputs alone, (out, in)."""
    dense = distance_kernel(in_factors, out_factors, scale)
    return dense - dense.mean(1, keepdim=True)


def row_held_kernel(in_factors: Tensor, out_factors: Tensor, *, scale: float) -> Tensor:
    """Double centring whose means over inputs are constants in the gradient, (out, in)."""
    dense = distance_kernel(in_factors, out_factors, scale)
    dense = dense - dense.mean(0, keepdim=True)
    return dense - dense.mean(1, keepdim=True).detach()


def held_kernel(in_factors: Tensor, out_factors: Tensor, *, scale: float) -> Tensor:
    """Double centring whose means are all constants in the gradient, (out, in)."""
    dense = distance_kernel(in_factors, out_factors, scale)
    return dense + (centred_kernel(in_factors, out_factors, scale=scale) - dense).detach()


register_kernel("row_held", row_held_kernel)
register_kernel("held", held_kernel)
register_kernel("centred", centred_kernel)
register_kernel("column_centred", column_centred_kernel)
register_kernel("row_centred", row_centred_kernel)
