"""Products with a frozen weight plus sparse deltas that are recomputed, never kept.

A frozen weight may hold several matrices stacked by rows (the packed q, k and v of an attention);
each is a :class:`DeltaBlock`. Between forward and backward nothing of the weight's size stays
alive: backward makes each delta again from its factors, with the threshold that forward found.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .delta import DeltaRule


@dataclass
class DeltaBlock:
    """The sparse delta of the rows ``start:stop`` of a weight, as the recipe that makes it.

    Args:
        start, stop: row range of the weight that this delta adds to.
        rule: how it is made.
        sparsity: share of its entries that are zero, in [0, 1].
        params: in_factors (H, in, r/H), out_factors (H, stop - start, r/H), then scalars.
    """

    start: int
    stop: int
    rule: DeltaRule
    sparsity: float
    params: tuple[Tensor, ...]


def merging_loses_deltas(weight: Tensor) -> bool:
    """Whether a product with ``weight`` runs in half precision, which rounds small deltas away."""
    return weight.dtype in (torch.float16, torch.bfloat16) or _autocast_enabled(weight.device.type)


def _autocast_enabled(device_type: str) -> bool:
    """Whether automatic mixed precision is on for this device, on torch old and new."""
    try:
        return torch.is_autocast_enabled(device_type)
    except TypeError:  # torch < 2.4 takes no device
        if device_type == "cpu":
            return torch.is_autocast_cpu_enabled()
        return torch.is_autocast_enabled()


def _full_precision(device: torch.device):
    return torch.autocast(device.type, enabled=False)


def _split_params(flat: tuple[Tensor, ...], blocks: list[DeltaBlock]) -> list[tuple[Tensor, ...]]:
    """Undo the flattening of all blocks' parameters."""
    groups, start = [], 0
    for block in blocks:
        groups.append(flat[start : start + len(block.params)])
        start += len(block.params)
    return groups


def _add_deltas(merged: Tensor, blocks, param_groups) -> list[Tensor]:
    """Add each block's delta to its rows of ``merged`` in place; return the thresholds."""
    thresholds = []
    for block, params in zip(blocks, param_groups, strict=True):
        delta, threshold = block.rule(params, block.sparsity)
        merged[block.start : block.stop] += delta
        thresholds.append(threshold)
    return thresholds


def _backward_deltas(blocks, param_groups, thresholds, grad_weight, merged=None) -> list:
    """Gradients of all blocks' parameters, flattened; adds the deltas to ``merged`` on the way."""
    grads = []
    for block, params, threshold in zip(blocks, param_groups, thresholds, strict=True):
        wanted = [p.requires_grad for p in params]
        leaves = tuple(p.detach().requires_grad_(w) for p, w in zip(params, wanted, strict=True))
        with torch.enable_grad():
            delta, _ = block.rule(leaves, block.sparsity, threshold)
        if merged is not None:
            merged[block.start : block.stop] += delta.detach()
        found = iter(
            torch.autograd.grad(
                delta,
                [leaf for leaf in leaves if leaf.requires_grad],
                grad_weight[block.start : block.stop].to(delta.dtype),
            )
            if any(wanted) and grad_weight is not None
            else ()
        )
        grads += [next(found, None) if w else None for w in wanted]
    return grads


class _DeltaProduct(torch.autograd.Function):
    """``x (W + deltas)^T + b``, saving x, the threshold of each block and what exists anyway."""

    @staticmethod
    def forward(ctx, x, weight, bias, shape, blocks, *params):
        groups = _split_params(params, blocks)
        with _full_precision(x.device):
            merged = params[0].new_zeros(shape) if weight is None else weight.detach().clone()
            thresholds = _add_deltas(merged, blocks, groups)
            y = F.linear(x, merged.to(x.dtype), None if bias is None else bias.to(x.dtype))
        ctx.shape, ctx.blocks, ctx.bias_dtype = shape, blocks, None if bias is None else bias.dtype
        ctx.save_for_backward(x, weight, *thresholds, *params)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        blocks = ctx.blocks
        x, weight, *rest = ctx.saved_tensors
        thresholds, groups = rest[: len(blocks)], _split_params(rest[len(blocks) :], blocks)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        flat_grad = grad_y.reshape(-1, grad_y.shape[-1])
        grad_x = merged = None
        with _full_precision(x.device):
            grad_weight = flat_grad.T @ x.reshape(-1, x.shape[-1])  # (out, in)
            if needs_x:
                like = groups[0][0] if weight is None else weight
                merged = like.new_zeros(ctx.shape) if weight is None else weight.detach().clone()
            grads = _backward_deltas(blocks, groups, thresholds, grad_weight, merged)
            if needs_x:
                grad_x = grad_y @ merged.to(grad_y.dtype)
        grad_bias = flat_grad.sum(0).to(ctx.bias_dtype) if needs_bias else None
        return grad_x, grad_weight if needs_weight else None, grad_bias, None, None, *grads


class _DeltaWeight(torch.autograd.Function):
    """``W + deltas`` as a tensor, its deltas made again in backward."""

    @staticmethod
    def forward(ctx, weight, blocks, *params):
        merged = weight.detach().clone()
        with _full_precision(weight.device):
            thresholds = _add_deltas(merged, blocks, _split_params(params, blocks))
        ctx.blocks = blocks
        ctx.save_for_backward(*thresholds, *params)
        return merged

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_weight):
        blocks = ctx.blocks
        thresholds = ctx.saved_tensors[: len(blocks)]
        groups = _split_params(ctx.saved_tensors[len(blocks) :], blocks)
        with _full_precision(grad_weight.device):
            grads = _backward_deltas(blocks, groups, thresholds, grad_weight)
        return grad_weight if ctx.needs_input_grad[0] else None, None, *grads


def _flat(blocks: list[DeltaBlock]) -> list[Tensor]:
    return [p for block in blocks for p in block.params]


def adapted_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, blocks: list[DeltaBlock]
) -> Tensor:
    """Linear layer with a frozen weight and sparse deltas: ``y = x (W + deltas)^T + b``.

    In single and double precision W and the deltas are merged into one product. Under autocast,
    and for a weight held in half precision, a merged weight would round the deltas away: there W
    and the deltas keep a product each, and the deltas are made in single precision.

    Args:
        x: input, shape (..., in).
        weight: W, shape (out, in).
        bias: shape (out,) or None.
        blocks: the deltas, by row ranges that do not overlap; an empty list gives the plain layer.

    Returns:
        Tensor of shape (..., out).
    """
    if not blocks:
        return F.linear(x, weight, bias)
    if merging_loses_deltas(weight):
        y = F.linear(x, weight, bias)
        return y + _DeltaProduct.apply(
            x.to(y.dtype), None, None, weight.shape, blocks, *_flat(blocks)
        )
    return _DeltaProduct.apply(x, weight, bias, weight.shape, blocks, *_flat(blocks))


def adapted_weight(weight: Tensor, blocks: list[DeltaBlock]) -> Tensor:
    """Return ``W + deltas``, shape (out, in), for code that reads a weight instead of calling it.

    The deltas themselves are not kept for backward; the result is, by whoever multiplies with it.
    """
    return _DeltaWeight.apply(weight, blocks, *_flat(blocks)) if blocks else weight
