"""Linear and distance heads in one sum of the same total rank, one threshold over it."""

from torch import Tensor

from ...functional import distance_kernel, linear_kernel, register_kernel
from ...functional.kernels import double_centred


def hybrid_kernel(in_factors: Tensor, out_factors: Tensor, *, scale: float) -> Tensor:
    """LoRA's product of the first half of the heads plus the distances of the others, (out, in).

    Give it a multiple of four heads, so that the distances come in pairs of either sign.
    """
    half = len(in_factors) // 2
    product = linear_kernel(in_factors[:half], out_factors[:half])
    return product + distance_kernel(in_factors[half:], out_factors[half:], scale)


def hybrid_centred_kernel(in_factors: Tensor, out_factors: Tensor, *, scale: float) -> Tensor:
    """The same with centred distances."""
    half = len(in_factors) // 2
    product = linear_kernel(in_factors[:half], out_factors[:half])
    distances = distance_kernel(in_factors[half:], out_factors[half:], scale)
    return product + double_centred(distances)


register_kernel("hybrid", hybrid_kernel)
register_kernel("hybrid_centred", hybrid_centred_kernel)
