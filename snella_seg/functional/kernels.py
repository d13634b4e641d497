"""Kernels that merge two small factor tensors into one dense weight change.

Factors have H heads of r/H columns each; ``in_factors`` is P with shape (H, in, r/H) and
``out_factors`` is Q with shape (H, out, r/H). The result has the shape of the weight, (out, in).

A kernel of your own is a function and a line, ``register_kernel(name, function, scalars)``; it then
works wherever a kernel is named.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


def head_weights(heads: int, scale: float, like: Tensor) -> Tensor:
    """Return the weight c_h of each head, ``scale * (+1, -1, +1, ...)``, shape (heads,)."""
    weights = like.new_full((heads,), scale)
    weights[1::2] = -scale
    return weights


def check_factors(in_factors: Tensor, out_factors: Tensor) -> None:
    """Refuse factors that do not fit each other.

    Raises:
        ValueError: naming both shapes.
    """
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
    check_factors(in_factors, out_factors)
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
    check_factors(in_factors, out_factors)
    return scale * torch.einsum("hor,hir->oi", out_factors, in_factors)


def double_centred(dense: Tensor) -> Tensor:
    """A matrix minus its means over inputs and over outputs, plus the mean of all, (out, in).

    Distances are never negative, so their means by rows and columns are large, and move all weights
    of a neuron alike. Centring, as in multidimensional scaling, leaves what tells weights apart;
    of squared distances it would leave the product of the factors.
    """
    dense = dense - dense.mean(0, keepdim=True)
    return dense - dense.mean(1, keepdim=True)


class Kernel(NamedTuple):
    """A registered kernel.

    Attributes:
        function: ``function(in_factors, out_factors, *scalars, scale) -> (out, in)``.
        scalars: name -> initial value of each learnable scalar, in the order of the function.
        columnwise: whether a column of the function's result depends on that row of ``in_factors``
            alone, so that the result may be made of parts.
        centred: whether K is the function's result :func:`double_centred`.
    """

    function: Callable[..., Tensor]
    scalars: Mapping[str, float]
    columnwise: bool
    centred: bool = False

    def dense(self, *params: Tensor, scale: float) -> Tensor:
        """K, (out, in), from factors and scalars."""
        made = self.function(*params, scale=scale)
        return double_centred(made) if self.centred else made


#: Name -> kernel; :func:`register_kernel` adds to it.
KERNELS: dict[str, Kernel] = {}


def register_kernel(
    name: str,
    function: Callable[..., Tensor],
    scalars: Mapping[str, float] | None = None,
    columnwise: bool | None = None,
    centred: bool = False,
) -> None:
    """Let ``kernel=name`` stand for a function, in training and wherever else deltas are made.

    Gradients come from autograd, so the function must consist of differentiable operations.

    Args:
        name: a new one.
        function: ``function(in_factors, out_factors, *scalars, scale) -> (out, in)``, with
            in_factors (H, in, r/H), out_factors (H, out, r/H), each scalar a tensor of shape (1,),
            and ``scale`` a float.
        scalars: name -> initial value of each learnable scalar, in the function's order; names
            that a parameter may have, and not those of the factors.
        columnwise: whether a column of the result depends on that row of ``in_factors`` alone.
            Then large matrices are made in parts, which saves memory. None finds out on small
            random factors.
        centred: whether K is what the function returns :func:`double_centred`.

    Raises:
        ValueError: on a name that is taken, scalars that cannot be parameters, or a function that
            does not return (out, in).
    """
    scalars = dict(scalars or {})
    taken_by = KERNELS.get(name)
    if taken_by is not None and (taken_by.function, taken_by.centred) != (function, centred):
        raise ValueError(f"a kernel {name!r} is registered already; choose another name")
    taken = {"in_factors", "out_factors", "sparsity"}
    wrong = [s for s in scalars if not s.isidentifier() or s in taken]
    if wrong:
        raise ValueError(f"scalars of a kernel must be new parameter names, got {wrong[0]!r}")
    if columnwise is None:
        columnwise = _is_columnwise(function, scalars)
    KERNELS[name] = Kernel(function, scalars, columnwise, centred)


def get_kernel(name: str) -> Kernel:
    """Look a kernel up.

    Raises:
        ValueError: when there is none of that name; the known ones are listed.
    """
    if name not in KERNELS:
        raise ValueError(f"unknown kernel {name!r}; choose one of {', '.join(sorted(KERNELS))}")
    return KERNELS[name]


@torch.no_grad()
def _is_columnwise(function: Callable[..., Tensor], scalars: Mapping[str, float]) -> bool:
    """Whether some columns of a kernel, made alone, are those of the whole; and check its shape."""
    generator = torch.Generator().manual_seed(0)
    p, q = (
        torch.randn(2, features, 3, dtype=torch.float64, generator=generator) for features in (7, 5)
    )
    values = [torch.full((1,), float(value), dtype=torch.float64) for value in scalars.values()]
    whole = function(p, q, *values, scale=0.1)
    if whole.shape != (5, 7):
        raise ValueError(
            "a kernel must return (out, in), here (5, 7) from in_factors (2, 7, 3) and out_factors "
            f"(2, 5, 3), got {tuple(whole.shape)}"
        )
    parts = [function(p[:, part], q, *values, scale=0.1) for part in (slice(0, 3), slice(3, 7))]
    return torch.allclose(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-12)


register_kernel("distance", distance_kernel)
register_kernel("centred", distance_kernel, centred=True)
register_kernel("linear", linear_kernel)
register_kernel("mixed", mixed_kernel, {"alpha": 1.0, "gamma": 1.0, "beta": 0.0})
