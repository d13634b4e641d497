"""Linear layers with a frozen weight plus sparse deltas, as autograd functions.

Between forward and backward nothing of the weight's size stays alive: backward makes each delta
again from its factors, with the threshold that forward found.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .blocks import DeltaBlock, MadeBlock
from .branch import Branch
from .call import Call, flat, grouped
from .low_rank import is_low_rank, low_rank_linear
from .matmul import linear, matmul, transposed_matmul
from .precision import full_precision, merging_loses_deltas, product_dtype
from .recipe import recipe_of
from .sampling import TokenSample
from .stack import merge_deltas, product_backward, weight_backward
from .tiles import State


def forward_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, call: Call
) -> tuple[Tensor, Tensor, list[State]]:
    """The product, x in the precision in which it was taken, and the state of each block.

    Merged: one product with W + deltas (and one with W for what drop-path leaves out). Split: W
    and the deltas have a product each, which half precision and dropout need.
    """
    branch, dtype = call.branch, call.dtype
    with full_precision(x.device):
        used = x.to(dtype)
        plain_weight, plain_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        rows = branch.select(used)
        base = None if call.split else weight
        merged, states = merge_deltas(base, weight.shape, call.blocks, branch.scale)
        if call.split:
            y = linear(used, plain_weight, plain_bias)
            rows = branch.drop(rows).to(call.delta_dtype)
            branch.add(y, linear(rows, merged.to(rows.dtype)).to(y.dtype))
        else:
            rows = linear(rows, merged.to(dtype), plain_bias)
            y = branch.place(rows, lambda left: linear(left, plain_weight, plain_bias), used)
    return y, used, states


def backward_product(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    call: Call,
    made: list[MadeBlock],
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients by x, weight and bias, as far as ``needs`` asks, then those by all parameters."""
    branch = call.branch
    needs_x, needs_weight, needs_bias = needs
    x = x.to(call.dtype)
    with full_precision(grad_y.device):
        grad_y = grad_y.to(call.dtype)
        plain_weight = weight.to(call.dtype)
        exact = call.delta_dtype if call.split else call.dtype
        rows, outer = branch.drop(branch.select(x)).to(exact), branch.select(grad_y).to(exact)
        grad_rows, grads = product_backward(
            rows,
            outer,
            None if call.split else weight,
            (weight.shape[0], weight.shape[1]),
            made,
            branch.scale,
            needs_x,
            call.sample.take(rows, outer),
        )
        grad_x = None
        if needs_x and call.split:
            grad_x = matmul(grad_y, plain_weight)
            assert grad_rows is not None
            branch.add(grad_x, branch.drop(grad_rows).to(grad_x.dtype))
        elif needs_x:
            assert grad_rows is not None
            grad_x = branch.place(grad_rows, lambda left: matmul(left, plain_weight), grad_y)
        flat_grad = grad_y.reshape(-1, grad_y.shape[-1])
        grad_weight = grad_bias = None
        if needs_weight:
            grad_weight = transposed_matmul(flat_grad, x.reshape(-1, x.shape[-1])).to(weight.dtype)
        if needs_bias:
            assert bias is not None
            grad_bias = flat_grad.sum(0).to(bias.dtype)
    return grad_x, grad_weight, grad_bias, *grads


class _AdaptedLinear(torch.autograd.Function):
    """:func:`forward_product` and its gradients.

    Kept for backward: x or how it was made, a threshold per block, and what exists anyway.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        call: Call,
        made_from: tuple[Tensor, ...],
        *params: Tensor,
    ) -> Tensor:
        y, used, states = forward_product(x, weight, bias, call)
        ctx.call = call
        kept = (used,) if call.recipe is None else made_from
        ctx.lengths = [len(kept), *map(len, states)]
        ctx.input_dtype = x.dtype
        ctx.save_for_backward(weight, bias, *kept, *flat(states), *params)
        return y.data  # no view to autograd, which would forbid activations in place

    @staticmethod
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        call = ctx.call
        weight, bias, *rest = ctx.saved_tensors
        lengths = ctx.lengths + [len(block.params) for block in call.blocks]
        kept, *groups = grouped(rest, lengths)
        states, params = groups[: len(call.blocks)], groups[len(call.blocks) :]
        needs = grouped(ctx.needs_input_grad[5:], [len(group) for group in params])
        made = [
            MadeBlock(block.with_params(group), state, need)
            for block, group, state, need in zip(call.blocks, params, states, needs, strict=True)
        ]
        x = kept[0] if call.recipe is None else call.recipe(*kept)
        grad_x, grad_weight, grad_bias, *grads = backward_product(
            grad_y, x, weight, bias, call, made, ctx.needs_input_grad[:3]
        )
        grad_x = None if grad_x is None else grad_x.to(ctx.input_dtype)
        return grad_x, grad_weight, grad_bias, None, None, *grads


class _AdaptedWeight(torch.autograd.Function):
    """``W + deltas`` as a tensor, its deltas made again in backward.

    The parameters are held as they are, not as saved tensors, so that one such tensor may serve
    several graphs that are freed one by one; their versions are checked here.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, blocks: list[DeltaBlock], *params: Tensor) -> Tensor:
        with full_precision(weight.device):
            merged, ctx.states = merge_deltas(weight, weight.shape, blocks)
        ctx.blocks, ctx.versions = blocks, [p._version for p in params]
        return merged.to(weight.dtype)

    @staticmethod
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @once_differentiable
    def backward(ctx: Any, grad_weight: Tensor) -> tuple[Tensor | None, ...]:
        params = flat(block.params for block in ctx.blocks)
        if [p._version for p in params] != ctx.versions:
            raise RuntimeError(
                "the SNELLA factors were changed in place between forward and backward; run "
                "backward before the optimizer's step"
            )
        needs = grouped(ctx.needs_input_grad[2:], [len(block.params) for block in ctx.blocks])
        made = [
            MadeBlock(block.with_params(tuple(p.detach() for p in block.params)), state, need)
            for block, state, need in zip(ctx.blocks, ctx.states, needs, strict=True)
        ]
        with full_precision(grad_weight.device):
            grads = weight_backward(grad_weight, made)
        return grad_weight if ctx.needs_input_grad[0] else None, None, *grads


def adapted_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    blocks: list[DeltaBlock],
    dropout: float = 0.0,
    drop_path: float = 0.0,
    kept: Tensor | None = None,
    token_share: float = 1.0,
) -> Tensor:
    """Linear layer with a frozen weight and sparse deltas: ``y = x (W + deltas)^T + b``.

    In single and double precision W and the deltas are merged into one product. Under autocast,
    for a weight held in half precision, and where single-precision products run in TF32 or
    bfloat16 (``torch.set_float32_matmul_precision``), a merged weight would round the deltas
    away: there W and the deltas keep a product each, and the deltas are made in single precision.
    So they do where dropout is asked for. A float16 product with the deltas runs in bfloat16. Where
    every delta is a product of its factors (LoRA), none is made.

    Args:
        x: input, shape (..., in). Where it was marked as recomputable
            (:mod:`snella_seg.engine.recipe`), its recipe is kept for backward instead.
        weight: W, shape (out, in).
        bias: shape (out,) or None.
        blocks: the deltas, by row ranges that do not overlap; an empty list gives the plain call.
        dropout: probability with which inputs of the deltas' product are left out; the others
            are scaled up.
        drop_path: probability with which an entry of the first dimension of x does without the
            deltas; the others' are scaled up. Costs no arithmetic: each entry has one product,
            with W or with W + deltas.
        kept: which entries drop-path keeps (:func:`snella_seg.engine.branch.draw_kept`), for
            several products that are to drop the same ones; None draws them here.
        token_share: share of the tokens by which the deltas' gradient is estimated, in (0, 1],
            drawn from torch's default generator (:mod:`snella_seg.engine.sampling`); y and the
            gradients by x, W and b are exact. LoRA, which makes no delta, takes all of them.

    Returns:
        Tensor of shape (..., out).

    Raises:
        ValueError: when a probability lies outside [0, 1), or a single vector has a drop_path.
    """
    for name, value in (("dropout", dropout), ("drop_path", drop_path)):
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{name} must lie in [0, 1), got {value}")
    if drop_path and x.ndim < 2:
        raise ValueError("drop_path leaves out entries of a batch; x is a single vector")
    if not blocks:
        return F.linear(x, weight, bias)
    recipe, made_from = recipe_of(x)
    low_rank = all(is_low_rank(block.rule) for block in blocks)
    call = Call(
        blocks,
        split=low_rank or bool(dropout) or merging_loses_deltas(weight),
        dtype=product_dtype(weight),
        branch=Branch.draw(x, dropout, drop_path, kept),
        recipe=recipe,
        sample=TokenSample() if low_rank else TokenSample.draw(token_share),
    )
    if low_rank:
        return low_rank_linear(x, weight, bias, call, made_from)
    params = flat(block.params for block in blocks)
    return _AdaptedLinear.apply(x, weight, bias, call, made_from, *params)


def adapted_weight(weight: Tensor, blocks: list[DeltaBlock]) -> Tensor:
    """Return ``W + deltas``, shape (out, in), for code that reads a weight instead of calling it.

    The deltas themselves are not kept for backward; the result is, by whoever multiplies with it.
    """
    if not blocks:
        return weight
    return _AdaptedWeight.apply(weight, blocks, *flat(block.params for block in blocks))
