"""Deltas by their rule itself, in one piece: any rule, on any device, without waiting for it.

Backward makes K again with a graph, which lives for that time only.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..functional import DeltaRule
from .tiles import write_rows


@torch.no_grad()
def write_whole(
    params: tuple[Tensor, ...],
    rule: DeltaRule,
    sparsity: float,
    out: Tensor,
    base: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor | None]:
    """Write ``base + scale * delta`` into ``out``, both (out, in); return the threshold."""
    delta, threshold = rule(tuple(p.detach() for p in params), sparsity)
    write_rows(out, base, delta, delta.new_ones(()), scale)
    return (threshold,)


def whole_backward(
    params: tuple[Tensor, ...],
    rule: DeltaRule,
    state: tuple[Tensor | None, ...],
    grad_delta: Tensor,
    needs: Sequence[bool],
    base: Tensor | None = None,
    out: Tensor | None = None,
    scale: float = 1.0,
) -> list[Tensor | None]:
    """Gradients of the parameters by autograd; and ``base + scale * delta`` in ``out``, if given.

    Args:
        params, rule: those that the delta was made of.
        state: its threshold.
        grad_delta: gradient of the delta, (out, in).
        needs: which parameters want a gradient.
        base, out, scale: as of :func:`write_whole`.

    Returns:
        A gradient of shape and dtype of each parameter, None where none is wanted.
    """
    leaves = tuple(p.detach().requires_grad_(n) for p, n in zip(params, needs, strict=True))
    with torch.enable_grad():
        delta, _ = rule(leaves, 0.0, state[0])
    if out is not None:
        base = None if base is None else base.to(out.dtype)
        write_rows(out, base, delta.detach(), delta.new_ones(()), scale)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if not wanted or not delta.requires_grad:
        return [torch.zeros_like(p) if n else None for p, n in zip(params, needs, strict=True)]
    grads = iter(
        torch.autograd.grad(delta, wanted, grad_delta.to(delta.dtype), materialize_grads=True)
    )
    return [next(grads) if need else None for need in needs]
