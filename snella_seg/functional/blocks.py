"""The sparse deltas of one frozen weight: merged with it, and differentiated through a product.

A weight may hold several matrices stacked by rows (the packed q, k and v of an attention); each
is a :class:`DeltaBlock`. The work is done by :mod:`~snella_seg.functional.tiled`, or on CUDA by
the Triton kernels of :mod:`~snella_seg.functional.triton_delta`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from . import tiled, triton_delta
from .delta import DeltaRule
from .precision import HALF
from .threshold import Bracket


@dataclass
class DeltaBlock:
    """The sparse delta of the rows ``start:stop`` of a weight, as the recipe that makes it.

    Args:
        start, stop: row range of the weight that this delta adds to.
        rule: how it is made.
        sparsity: share of its entries that are zero, in [0, 1].
        params: in_factors (H, in, r/H), out_factors (H, stop - start, r/H), then scalars.
        bracket: where its threshold was last time; kept by whoever makes blocks again and again.
    """

    start: int
    stop: int
    rule: DeltaRule
    sparsity: float
    params: tuple[Tensor, ...]
    bracket: Bracket = field(default_factory=Bracket)

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    def with_params(self, params: tuple[Tensor, ...]) -> "DeltaBlock":
        """The same block over other tensors of the same values."""
        return replace(self, params=params)

    @property
    def working_dtype(self) -> torch.dtype:
        """In which the delta is made: the factors' dtype, but single precision for half."""
        dtype = self.params[0].dtype
        return torch.float32 if dtype in HALF else dtype

    @property
    def by_triton(self) -> bool:
        """Whether the Triton kernels make this delta."""
        factors = self.params[0]
        return (
            factors.is_cuda
            and factors.dtype != torch.float64
            and triton_delta.knows(self.rule)
            and triton_delta.available(factors.device)
        )


@dataclass
class MadeBlock:
    """A block in backward: the state that making it left, and which parameters want gradients."""

    block: DeltaBlock
    state: tuple[Tensor | None, ...]
    needs: tuple[bool, ...]


def merge_deltas(
    weight: Tensor | None, shape: tuple[int, int], blocks: list[DeltaBlock], scale: float = 1.0
) -> tuple[Tensor, list[tuple[Tensor | None, ...]]]:
    """Make ``weight + scale * deltas``, or the scaled deltas alone where ``weight`` is None.

    Returns:
        The sum, of ``shape`` (out, in) in the working dtype, and the state of each block, small
        tensors from which backward makes the same delta again.
    """
    like = blocks[0].params[0]
    dtype = blocks[0].working_dtype
    base = None if weight is None else weight.detach().to(dtype)
    covered = sum(block.stop - block.start for block in blocks) == shape[0]
    if base is not None and not covered:
        merged = base.clone()
    else:
        make = torch.empty if covered else torch.zeros
        merged = make(shape, dtype=dtype, device=like.device)
    states = []
    for block in blocks:
        out, part = merged[block.rows], None if base is None else base[block.rows]
        recipe = (block.params, block.rule, block.sparsity)
        if block.by_triton:
            states.append(triton_delta.make_delta(*recipe, part, out, scale)[1])
        else:
            states.append(tiled.make_delta(*recipe, block.bracket, out, part, scale))
    return merged, states


def product_backward(
    x: Tensor,
    grad_y: Tensor,
    weight: Tensor | None,
    shape: tuple[int, int],
    made: list[MadeBlock],
    scale: float,
    needs_x: bool,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of ``x (weight + scale * deltas)^T`` by x and by the parameters of all blocks.

    Args:
        x: (M, in).
        grad_y: (M, out).
        weight: (out, in), or None for a product with the deltas alone.
        shape: (out, in).
        made: the blocks.
        scale: factor of the deltas.
        needs_x: whether the gradient by x is wanted.

    Returns:
        The gradient by x or None, and those by all parameters in one list.
    """
    if made[0].block.by_triton:
        grad_weight = grad_y.T @ x
        merged, grads = _weight_backward_triton(grad_weight, weight, shape, made, scale, needs_x)
        return grad_y @ merged.to(grad_y.dtype) if needs_x else None, grads

    grad_x = None
    if needs_x:
        only_sparse = all(entry.state[1] is not None for entry in made)
        if not only_sparse:
            grad_x = torch.empty_like(x)
        else:
            grad_x = torch.zeros_like(x) if weight is None else grad_y @ weight

    def grad_delta(rows, columns, factor):
        return tiled.masked_product(grad_y[:, rows], x[:, columns], factor)

    def use_merged(columns, merged):
        torch.mm(grad_y, merged.to(grad_y.dtype), out=grad_x[:, columns])

    def use_sparse(rows, columns, kept, factor):
        change = tiled.sparse_product(grad_y[:, rows], kept, factor)
        grad_x.index_add_(1, columns, change, alpha=scale)

    uses = (use_merged, use_sparse) if needs_x else (None, None)
    return grad_x, _backward_tiled(weight, shape, made, scale, grad_delta, *uses)


def weight_backward(
    grad_weight: Tensor, made: list[MadeBlock], scale: float = 1.0
) -> list[Tensor | None]:
    """Gradients of ``scale * deltas`` by all parameters, given the gradient of the weight."""
    shape = tuple(grad_weight.shape)
    if made[0].block.by_triton:
        return _weight_backward_triton(grad_weight, None, shape, made, scale, False)[1]

    def grad_delta(rows, columns, factor):
        return grad_weight[rows][:, columns].to(factor.dtype) * factor

    return _backward_tiled(None, shape, made, scale, grad_delta)


def _backward_tiled(
    weight: Tensor | None,
    shape: tuple[int, int],
    made: list[MadeBlock],
    scale: float,
    grad_delta: Callable[[slice, tiled.Columns, Tensor], Tensor],
    use_merged: Callable[[slice, Tensor], None] | None = None,
    use_sparse: Callable[[slice, Tensor, Tensor, Tensor], None] | None = None,
) -> list[Tensor | None]:
    """Make all deltas again, tile by tile, and the gradients of their parameters.

    ``grad_delta(rows, columns, factor)`` gives the gradient of a part of a delta, times its factor.
    ``use_merged(columns, merged)`` gets the merged weight of some columns, with the deltas of all
    blocks that are non-zero in most columns; ``use_sparse(rows, columns, kept, factor)`` gets
    columns of the other deltas, those that hold non-zero weights only.
    """
    matrices = [tiled.tiled_delta(m.block.params, m.block.rule) for m in made]

    def remake(entry, matrix, columns):
        tile = matrix.tile(columns)
        threshold, sparsifier = float(entry.state[0]), entry.block.rule.sparsifier
        kept, factor = tiled.split_factor(tile.dense, threshold, sparsifier)
        return tile, kept, factor

    def differentiate(entry, matrix, tile, factor):
        if any(entry.needs):
            grad = grad_delta(entry.block.rows, tile.columns, factor)
            matrix.add_gradients(tile, grad if scale == 1.0 else grad.mul_(scale))

    pairs = list(zip(made, matrices, strict=True))
    dense = [pair for pair in pairs if pair[0].state[1] is None]
    dtype, device = made[0].block.working_dtype, made[0].block.params[0].device
    covered = sum(entry.block.stop - entry.block.start for entry, _ in dense) == shape[0]

    def base_tile(columns):
        if weight is not None and not covered:
            return weight[:, columns].to(dtype, copy=True)
        make = torch.empty if covered else torch.zeros
        return make(shape[0], columns.stop - columns.start, dtype=dtype, device=device)

    tallest = max(entry.block.stop - entry.block.start for entry in made)
    for columns in tiled.column_tiles(tallest, shape[1]) if dense else ():
        merged = None if use_merged is None else base_tile(columns)
        for entry, matrix in dense:
            tile, kept, factor = remake(entry, matrix, columns)
            if merged is not None:
                rows = entry.block.rows
                base = None if weight is None else weight[rows, columns].to(kept.dtype)
                tiled.write(merged[rows], base, kept, factor, scale)
                if entry is dense[-1][0]:
                    use_merged(columns, merged)
                    merged = None
            del kept
            differentiate(entry, matrix, tile, factor)
            del tile, factor
    for entry, matrix in pairs:
        if entry.state[1] is None:
            continue
        for columns in tiled.column_parts(entry.state[1], tallest):
            tile, kept, factor = remake(entry, matrix, columns)
            if use_sparse is not None:
                use_sparse(entry.block.rows, columns, kept, factor)
            differentiate(entry, matrix, tile, factor)
    return [g for entry, matrix in pairs for g in matrix.gradients(entry.needs)]


def _weight_backward_triton(grad_weight, weight, shape, made, scale, needs_merged):
    """By the Triton kernels: the merged weight, where needed, and the parameters' gradients."""
    merged, grads = None, []
    if scale != 1.0:
        grad_weight = grad_weight * scale
    if needs_merged:
        covered = sum(entry.block.stop - entry.block.start for entry in made) == shape[0]
        make = torch.empty if covered else torch.zeros
        merged = make(shape, dtype=torch.float32, device=grad_weight.device)
        if weight is not None and not covered:
            merged.copy_(weight)
    for entry in made:
        rows = entry.block.rows
        grads += triton_delta.backward_delta(
            entry.block.params,
            entry.block.rule,
            entry.state,
            grad_weight[rows],
            entry.needs,
            base=None if weight is None else weight[rows],
            out=None if merged is None else merged[rows],
            amount=scale,
        )
    return merged, grads
