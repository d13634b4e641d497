"""Relatives of the kernel 'centred' that were tried beside it: centring by one side alone."""

from torch import Tensor

from ...functional import distance_kernel, register_kernel


def outputs_centred_kernel(in_factors: Tensor, out_factors: Tensor, *, scale: float) -> Tensor:
    """D minus its means over outputs, (out, in)."""
    dense = distance_kernel(in_factors, out_factors, scale)
    return dense - dense.mean(0, keepdim=True)


def inputs_centred_kernel(in_factors: Tensor, out_factors: Tensor, *, scale: float) -> Tensor:
    """D minus its means over inputs, (out, in)."""
    dense = distance_kernel(in_factors, out_factors, scale)
    return dense - dense.mean(1, keepdim=True)


def held_kernel(in_factors: Tensor, out_factors: Tensor, *, scale: float) -> Tensor:
    """Double centring whose means are constants in the gradient, (out, in)."""
    dense = distance_kernel(in_factors, out_factors, scale)
    means = dense.mean(0, keepdim=True) + dense.mean(1, keepdim=True) - dense.mean()
    return dense - means.detach()


register_kernel("outputs_centred", outputs_centred_kernel)
register_kernel("inputs_centred", inputs_centred_kernel)
register_kernel("held", held_kernel)
