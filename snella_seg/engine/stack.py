"""The sparse deltas of one frozen weight: merged with it, and differentiated through a product.

A weight may hold several matrices stacked by rows (the packed q, k and v of an attention); each
is a :class:`~snella_seg.engine.blocks.DeltaBlock`. On a CPU they are made by
:mod:`~snella_seg.engine.native` where that runs, else by :mod:`~snella_seg.engine.tiles`, on a GPU
by :mod:`~snella_seg.engine.gpu`, and wherever these know nothing of a rule, by the rule
itself (:mod:`~snella_seg.engine.whole_delta`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import columns as cut
from . import gpu, native, tiles, whole_delta
from .accumulation import AccumulatedMatrix
from .blocks import DeltaBlock, MadeBlock, Maker, launches, makers, stacked
from .columns import Columns, Product
from .matmul import matmul, matmul_into, transposed_matmul
from .native import Entries, NativeMatrix
from .tiles import State


def _covered(blocks: Sequence[DeltaBlock], rows: int) -> bool:
    return sum(block.stop - block.start for block in blocks) == rows


def _start(
    weight: Tensor | None, shape: torch.Size | tuple[int, int], blocks: Sequence[DeltaBlock]
) -> Tensor:
    """A matrix to write the deltas of ``blocks`` into: rows that have none hold ``weight``."""
    like, dtype = blocks[0].params[0], blocks[0].working_dtype
    covered = _covered(blocks, shape[0])
    if weight is not None and not covered:
        return weight.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
    make = torch.empty if covered else torch.zeros
    return make(shape, dtype=dtype, device=like.device)


def merge_deltas(
    weight: Tensor | None,
    shape: torch.Size | tuple[int, int],
    blocks: Sequence[DeltaBlock],
    scale: float = 1.0,
) -> tuple[Tensor, list[State]]:
    """Make ``weight + scale * deltas``, or the scaled deltas alone where ``weight`` is None.

    Returns:
        The sum, of ``shape`` (out, in) in the working dtype, and the state of each block, small
        tensors from which backward makes the same delta again.
    """
    base = None if weight is None else weight.detach().to(blocks[0].working_dtype)
    merged = _start(base, shape, blocks)
    states: list[State] = []
    for maker, group in launches(blocks):
        block = group[0]
        if maker is Maker.TRITON:
            params, sparsities = [b.params for b in group], [b.sparsity for b in group]
            parts = None if base is None else stacked(base, group)
            outs = stacked(merged, group)
            states += gpu.launch_deltas(params, block.rule, sparsities, parts, outs, scale)[1]
            continue
        out, part = merged[block.rows], None if base is None else base[block.rows]
        recipe = (block.params, block.rule, block.sparsity)
        if maker is Maker.NATIVE:
            states.append(_write_native(block, out, part, scale))
        elif maker is Maker.TILES:
            states.append(tiles.write_delta(*recipe, block.bracket, out, part, scale))
        else:
            states.append(whole_delta.write_whole(*recipe, out, part, scale))
    return merged, states


def _write_native(block: DeltaBlock, out: Tensor, base: Tensor | None, scale: float) -> State:
    """Let the library make a delta, unless an earlier micro-batch of the same step has."""
    kept = block.accumulator
    state = None if kept is None else kept.recall(block, out, base, scale)
    if state is None:
        recipe = (block.params, block.rule, block.sparsity, block.bracket)
        state = native.write_delta(*recipe, out, base, scale)
        if kept is not None:
            kept.keep(block, out, base, scale, state)
    return state


def product_backward(
    x: Tensor,
    grad_y: Tensor,
    weight: Tensor | None,
    shape: tuple[int, int],
    made: list[MadeBlock],
    scale: float,
    needs_x: bool,
    tokens: tuple[Tensor, Tensor] | None = None,
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
        tokens: what stands for x and grad_y in the parameters' gradients, of fewer rows; None for
            themselves.

    Returns:
        The gradient by x or None, and those by all parameters in one list.
    """
    inner, outer = (x, grad_y) if tokens is None else tokens
    if not _all_tiled(made):
        grad_weight = transposed_matmul(outer, inner)
        merged, grads = _backward_whole(grad_weight, weight, shape, made, scale, needs_x)
        return matmul(grad_y, merged.to(grad_y.dtype)) if merged is not None else None, grads

    grad_x = x.new_empty(0)
    if needs_x:
        only_sparse = all(entry.active is not None for entry in made)
        if not only_sparse:
            grad_x = torch.empty_like(x)
        else:
            grad_x = torch.zeros_like(x) if weight is None else matmul(grad_y, weight)

    def grad_delta(
        block: DeltaBlock,
        columns: Columns,
        factor: Tensor | None,
        wanted: Entries | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        part = outer[:, block.rows], inner[:, columns]
        if factor is None:
            return tiles.product_of_entries(*part, wanted, block.working_dtype, out)
        return tiles.masked_product(*part, factor)

    def use_merged(columns: slice, merged: Tensor) -> None:
        matmul_into(grad_y, merged.to(grad_y.dtype), grad_x[:, columns])

    def use_sparse(rows: slice, columns: Tensor, delta: Tensor) -> None:
        grad_x.index_add_(1, columns, tiles.sparse_product(grad_y[:, rows], delta))

    if not needs_x:
        return None, _backward_tiled(weight, shape, made, scale, grad_delta)
    recipe = (weight, shape, made, scale, grad_delta)
    return grad_x, _backward_tiled(*recipe, use_merged, use_sparse)


def weight_backward(
    grad_weight: Tensor, made: list[MadeBlock], scale: float = 1.0
) -> list[Tensor | None]:
    """Gradients of ``scale * deltas`` by all parameters, given the gradient of the weight."""
    shape = (grad_weight.shape[0], grad_weight.shape[1])
    if not _all_tiled(made):
        return _backward_whole(grad_weight, None, shape, made, scale, False)[1]

    def grad_delta(block: DeltaBlock, columns: Columns, factor: Tensor | None, *_: Any) -> Tensor:
        grad = grad_weight[block.rows][:, columns].to(block.working_dtype)
        return grad if factor is None else grad * factor

    return _backward_tiled(None, shape, made, scale, grad_delta)


def _all_tiled(made: list[MadeBlock]) -> bool:
    return makers([entry.block for entry in made])[0] in (Maker.TILES, Maker.NATIVE)


def _backward_tiled(
    weight: Tensor | None,
    shape: tuple[int, int],
    made: list[MadeBlock],
    scale: float,
    grad_delta: Callable[..., Tensor],
    use_merged: Callable[[slice, Tensor], None] | None = None,
    use_sparse: Callable[[slice, Tensor, Tensor], None] | None = None,
) -> list[Tensor | None]:
    """Make all deltas again, tile by tile, and the gradients of their parameters.

    ``grad_delta(block, ...)`` is the :class:`~snella_seg.engine.tiles.Product` of a block.
    ``use_merged(columns, merged)`` gets the merged weight of some columns, with the deltas of all
    blocks that are non-zero in most columns; ``use_sparse(rows, columns, delta)`` gets columns of
    the other deltas, those that hold non-zero weights only.
    """
    kinds = makers([entry.block for entry in made])
    matrices = [_matrix_of(entry, kind) for entry, kind in zip(made, kinds, strict=True)]

    def product_of(entry: MadeBlock) -> Product | None:
        return partial(grad_delta, entry.block) if any(entry.needs) else None

    pairs = list(zip(made, matrices, strict=True))
    dense = [pair for pair in pairs if pair[0].active is None]
    dense_blocks = [entry.block for entry, _ in dense]

    def base_tile(columns: slice, room: Tensor | None) -> Tensor:
        size = (shape[0], columns.stop - columns.start)
        if room is not None and room.shape == size and _covered(dense_blocks, shape[0]):
            return room
        part = None if weight is None else weight[:, columns]
        return _start(part, size, dense_blocks)

    tallest = max(entry.block.stop - entry.block.start for entry in made)
    wider = cut.WIDER if all(kind is Maker.NATIVE for kind in kinds) else 1
    room: Tensor | None = None  # of a merged tile that was used: fresh pages cost time
    for columns in cut.column_tiles(tallest, shape[1], wider) if dense else ():
        merged = None if use_merged is None else base_tile(columns, room)
        for entry, matrix in dense:
            rows = entry.block.rows
            part = None if merged is None or weight is None else weight[rows, columns]
            base = None if part is None else part.to(entry.block.working_dtype)
            out = None if merged is None else merged[rows]
            matrix.again(columns, out, base, scale, product_of(entry))
        if merged is not None and use_merged is not None:
            use_merged(columns, merged)
            room = merged if wider > 1 else None
    room = None
    for entry, matrix in pairs:
        if entry.active is None:
            continue
        for chosen in cut.column_parts(entry.active, tallest, wider):
            block = entry.block
            delta = block.params[0].new_empty(
                (block.stop - block.start, len(chosen)), dtype=block.working_dtype
            )
            matrix.again(chosen, delta, None, scale, product_of(entry))
            if use_sparse is not None:
                use_sparse(block.rows, chosen, delta)
    return [g for entry, matrix in pairs for g in matrix.gradients(entry.needs)]


def _matrix_of(
    entry: MadeBlock, kind: Maker
) -> NativeMatrix | AccumulatedMatrix | tiles.TiledMatrix:
    if entry.accumulator is not None:
        return AccumulatedMatrix(entry.block, entry.accumulator)
    matrix = NativeMatrix if kind is Maker.NATIVE else tiles.TiledMatrix
    return matrix(entry.block.params, entry.block.rule, entry.state)


def _narrowed(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Double precision as what the kernels of a GPU take; other precisions as they are."""
    return matrix.to(dtype) if matrix.dtype == torch.float64 else matrix


def _backward_whole(
    grad_weight: Tensor,
    weight: Tensor | None,
    shape: tuple[int, int],
    made: list[MadeBlock],
    scale: float,
    needs_merged: bool,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Without tiles: the merged weight, where needed, and the parameters' gradients."""
    blocks = [entry.block for entry in made]
    merged = _start(weight, shape, blocks) if needs_merged else None
    grad_weight = grad_weight if scale == 1.0 else grad_weight * scale
    grads: list[Tensor | None] = []
    left = iter(made)
    for maker, group in launches(blocks):
        entries = [next(left) for _ in group]
        if maker is Maker.TRITON:
            working = group[0].working_dtype
            base = None if weight is None else stacked(_narrowed(weight, working), group)
            out = None if merged is None else stacked(merged, group)
            found = gpu.launch_backwards(
                [block.params for block in group],
                group[0].rule,
                [entry.state for entry in entries],
                stacked(_narrowed(grad_weight, working), group),
                [entry.needs for entry in entries],
                base,
                out,
                scale,
            )
            grads += [grad for each in found for grad in each]
            continue
        (block,), (entry,) = group, entries
        base = None if weight is None else weight[block.rows]
        out = None if merged is None else merged[block.rows]
        recipe = (block.params, block.rule, entry.state, grad_weight[block.rows])
        grads += whole_delta.whole_backward(*recipe, entry.needs, base, out, scale)
    return merged, grads
