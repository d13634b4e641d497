"""Kernels that merge two small factor tensors into one dense weight change.

Factors have H heads of r/H columns each; ``in_factors`` is P with shape (H, in, r/H) and
``out_factors`` is Q with shape (H, out, r/H). The result has the shape of the weight, (out, in).
"""

import torch
from torch import Tensor


def head_weights(heads: int, scale: float, like: Tensor) -> Tensor:
    """Return the weight c_h of each head, ``scale * (+1, -1, +1, ...)``, shape (heads,)."""
    weights = like.new_full((heads,), scale)
    weights[1::2] = -scale
    return weights


def _check_factors(in_factors: Tensor, out_factors: Tensor) -> None:
    if in_factors.ndim != 3 or out_factors.ndim != 3:
        raise ValueError(
            "factors must have three dimensions, (heads, features, rank / heads), got "
            f"{tuple(in_factors.shape)} and {tuple(out_factors.shape)}"
        )
    if in_factors.shape[0] != out_factors.shape[0] or in_factors.shape[2] != out_factors.shape[2]:
        raise ValueError(
            "in_factors and out_factors must agree in heads and in rank per head, got "
            f"{tuple(in_factors.shape)} and {tuple(out_factors.shape)}"
        )


def distance_kernel(in_factors: Tensor, out_factors: Tensor, scale: float = 0.1) -> Tensor:
    """Signed sum over heads of Euclidean distances (SNELL, arXiv 2411.01800).

    ``D[o, i] = sum_h c_h * || P[h, i] - Q[h, o] ||_2`` with ``c = scale * (+1, -1, ...)``.

    The distances are taken directly, not through ``|p|^2 + |q|^2 - 2pq``, which loses digits when
    two rows nearly coincide. The gradient at distance 0 is 0.

    Args:
        in_factors: P, shape (H, in, r/H), floating point.
        out_factors: Q, shape (H, out, r/H), same dtype.
        scale: absolute weight of each head.

    Returns:
        Tensor of shape (out, in).

    Raises:
        ValueError: if the factors do not fit each other.
    """
    _check_factors(in_factors, out_factors)
    distances = torch.cdist(
        out_factors, in_factors, compute_mode="donot_use_mm_for_euclid_dist"
    )  # (H, out, in)
    return torch.tensordot(head_weights(len(distances), scale, distances), distances, dims=1)


def mixed_kernel(
    in_factors: Tensor,
    out_factors: Tensor,
    alpha: Tensor | float,
    gamma: Tensor | float,
    beta: Tensor | float,
    scale: float = 0.1,
) -> Tensor:
    """Distance kernel plus its softmax over the output axis (SNELLA, arXiv 2510.24037).

    ``K[o, i] = D[o, i] + alpha * softmax_over_o(D[o, i] / gamma) + beta``

    Args:
        in_factors: P, shape (H, in, r/H).
        out_factors: Q, shape (H, out, r/H).
        alpha: weight of the softmax term, a scalar or one-element tensor.
        gamma: temperature of the softmax, likewise; not 0.
        beta: offset, likewise.
        scale: absolute weight of each head in D.

    Returns:
        Tensor of shape (out, in).
    """
    distances = distance_kernel(in_factors, out_factors, scale)
    return distances + alpha * torch.softmax(distances / gamma, dim=0) + beta


def linear_kernel(in_factors: Tensor, out_factors: Tensor, scale: float = 1.0) -> Tensor:
    """The low-rank product of LoRA (arXiv 2106.09685), summed over heads.

    ``K[o, i] = scale * sum_h Q[h, o] . P[h, i]``, so H heads of r/H columns are LoRA of rank r
    with ``A = P^T``, ``B = Q`` and ``scale = lora_alpha / r``.

    Args:
        in_factors: P, shape (H, in, r/H).
        out_factors: Q, shape (H, out, r/H).
        scale: multiplies the product.

    Returns:
        Tensor of shape (out, in).
    """
    _check_factors(in_factors, out_factors)
    return scale * torch.einsum("hor,hir->oi", out_factors, in_factors)


#: Kernel name -> (function, initial value of each learnable scalar that it takes, in order).
KERNELS = {
    "distance": (distance_kernel, {}),
    "linear": (linear_kernel, {}),
    "mixed": (mixed_kernel, {"alpha": 1.0, "gamma": 1.0, "beta": 0.0}),
}
