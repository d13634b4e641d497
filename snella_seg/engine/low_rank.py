"""Linear layers with a frozen weight plus low-rank deltas: LoRA, arXiv 2106.09685.

Where all of a linear kernel takes part, its delta ``scale * Q P^T`` needs not be made: two products
with r columns do, and cost next to nothing beside that with the weight.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..functional import DeltaRule, linear_kernel
from ..functional.kernels import get_kernel
from ..functional.sparsify import full_factor, get_sparsifier
from .blocks import DeltaBlock
from .call import Call, flat, grouped, no_view
from .matmul import linear, matmul, transposed_matmul
from .precision import full_precision


def is_low_rank(rule: DeltaRule) -> bool:
    """Whether the deltas of a rule are products of their factors and nothing else."""
    return (
        isinstance(rule, DeltaRule)
        and get_kernel(rule.kernel).function is linear_kernel
        and not get_kernel(rule.kernel).centred
        and get_sparsifier(rule.sparsifier).factor is full_factor
    )


class LowRankLinear(torch.autograd.Function):
    """``x W^T + b`` plus ``scale * (x P) Q^T`` of each block, for what the branch keeps of x.

    Kept for backward: x or how it was made, and ``x P``, which has r columns a block.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, call: Call, made_from, *params):  # type: ignore[no-untyped-def]
        branch, dtype = call.branch, call.dtype
        with full_precision(x.device):
            used = x.to(dtype)
            y = linear(used, weight.to(dtype), None if bias is None else bias.to(dtype))
            rows, thin = branch.drop(branch.select(used)), _thin(call.blocks, dtype)
            everywhere = branch.keep is None
            outer = y.view(-1, y.shape[-1]) if everywhere else y.new_zeros(len(rows), y.shape[-1])
            inner = [rows @ p for p, _ in thin]
            for block, (_, q), h in zip(call.blocks, thin, inner, strict=True):
                outer[:, block.rows].addmm_(h, q.T, alpha=block.rule.scale * branch.scale)
            if not everywhere:
                branch.add(y, outer)
        ctx.call, ctx.input_dtype = call, x.dtype
        kept = (used,) if call.recipe is None else made_from
        ctx.lengths = [len(kept), len(inner)]
        ctx.save_for_backward(weight, bias, *kept, *inner, *params)
        return no_view(y)

    @staticmethod
    @torch.compiler.disable
    @once_differentiable
    def backward(ctx, grad_y):  # type: ignore[no-untyped-def]
        call, branch = ctx.call, ctx.call.branch
        weight, bias, *rest = ctx.saved_tensors
        lengths = ctx.lengths + [len(block.params) for block in call.blocks]
        kept, inner, *params = grouped(rest, lengths)
        blocks = [b.with_params(group) for b, group in zip(call.blocks, params, strict=True)]
        needs = grouped(ctx.needs_input_grad[5:], [len(group) for group in params])
        with full_precision(grad_y.device):
            grad_y = grad_y.to(call.dtype)
            x = (kept[0] if call.recipe is None else call.recipe(*kept)).to(call.dtype)
            rows, outer = branch.drop(branch.select(x)), branch.select(grad_y)
            thin = _thin(blocks, call.dtype)
            grads: list[Tensor | None] = []
            backs = []
            for block, (_, q), h, need in zip(blocks, thin, inner, needs, strict=True):
                scale = block.rule.scale * branch.scale
                part = outer[:, block.rows]
                backs.append(torch.mm(part, q).mul_(scale))  # gradient by x P, (M, r)
                grad_p = rows.T @ backs[-1] if need[0] else None
                grad_q = (part.T @ h).mul_(scale) if need[1] else None
                grads += [_heads(g, p) for g, p in zip((grad_p, grad_q), block.params, strict=True)]
            grad_x = None
            if ctx.needs_input_grad[0]:
                grad_x = matmul(grad_y, weight.to(call.dtype))
                change = (torch.cat(backs, 1), torch.cat([p for p, _ in thin], 1).T)
                if branch.idle:
                    grad_x.view(-1, grad_x.shape[-1]).addmm_(*change)
                else:
                    branch.add(grad_x, branch.drop(torch.mm(*change)))
                grad_x = grad_x.to(ctx.input_dtype)
            flat_grad = grad_y.reshape(-1, grad_y.shape[-1])
            grad_weight = grad_bias = None
            if ctx.needs_input_grad[1]:
                grad_weight = transposed_matmul(flat_grad, x.reshape(-1, x.shape[-1])).to(
                    weight.dtype
                )
            if ctx.needs_input_grad[2]:
                grad_bias = flat_grad.sum(0).to(bias.dtype)
        return grad_x, grad_weight, grad_bias, None, None, *grads


def _thin(blocks: Sequence[DeltaBlock], dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """P and Q of each block with their heads side by side, (in, r) and (out, r)."""
    return [
        (
            block.params[0].detach().to(dtype).transpose(0, 1).flatten(1),
            block.params[1].detach().to(dtype).transpose(0, 1).flatten(1),
        )
        for block in blocks
    ]


def _heads(grad: Tensor | None, param: Tensor) -> Tensor | None:
    """A gradient (features, r) as that of the factor, (H, features, r/H)."""
    if grad is None:
        return None
    return grad.unflatten(1, (len(param), -1)).transpose(0, 1).to(param.dtype)


def add_low_rank(
    y: Tensor, x: Tensor, rows: tuple[int, int], rule: DeltaRule, params: tuple[Tensor, ...]
) -> Tensor:
    """``y`` (..., out) plus ``scale * (x P) Q^T`` in some of its features, by plain operations."""
    p, q = (t.to(y.dtype).transpose(0, 1).flatten(1) for t in params)
    change = F.linear(F.linear(x.to(y.dtype), p.T), q) * rule.scale
    return y + F.pad(change, (rows[0], y.shape[-1] - rows[1]))


def low_rank_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, call: Call, made_from: tuple[Tensor, ...]
) -> Tensor:
    """The layer of :func:`snella_seg.engine.adapted_linear` where all deltas are low-rank."""
    params = flat(block.params for block in call.blocks)
    return LowRankLinear.apply(x, weight, bias, call, made_from, *params)
