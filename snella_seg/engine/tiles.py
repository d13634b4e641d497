"""The weight side on a CPU: K and its derivatives for some columns at a time, nothing kept.

Which class makes the tiles of a kernel is looked up by the kernel's function: hand-written ones for
the functions of :mod:`snella_seg.functional.kernels`, :class:`AutogradTiles` for all others.

A column that holds no weight of the competition has no gradient at all, since K reaches the loss
through its non-zero entries only: backward leaves such columns out.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..functional import DeltaRule, distance_kernel, linear_kernel, mixed_kernel
from ..functional.kernels import get_kernel
from ..functional.sparsify import (
    full_factor,
    get_sparsifier,
    soft_factor,
    unit_of,
    weighted_factor,
)
from . import columns as cut
from .autograd_tiles import AutogradTiles
from .centred_tiles import CentredTiles, write_centred
from .columns import Columns, Product, Tiles
from .distance_tiles import DistanceTiles
from .linear_tiles import LinearTiles
from .matmul import matmul, transposed_matmul
from .native import Entries, can_sample, sampled_product
from .threshold_search import Bracket, ThresholdSearch

#: What making a delta leaves for backward, small: its threshold, then what its maker needs.
State = tuple[Tensor | None, ...]


#: Function of a kernel -> what makes its tiles.
TILES: dict[Callable[..., Tensor], type] = {
    distance_kernel: DistanceTiles,
    linear_kernel: LinearTiles,
    mixed_kernel: DistanceTiles,
}


def tiles_of(
    params: tuple[Tensor, ...], rule: DeltaRule, centre: tuple[Tensor, Tensor] | None = None
) -> Tiles:
    """K of one matrix, tile by tile, by the kernel of ``rule``.

    Of a centred kernel these are the tiles of its function, until ``centre`` gives the means over
    inputs and outputs that :func:`~snella_seg.engine.centred_tiles.write_centred` has found.
    """
    made: Tiles = TILES.get(get_kernel(rule.kernel).function, AutogradTiles)(params, rule)
    return made if centre is None else CentredTiles(made, centre)


def can_tile(rule: DeltaRule) -> bool:
    """Whether a delta may be made of parts."""
    return get_kernel(rule.kernel).columnwise and get_sparsifier(rule.sparsifier).elementwise


def split_factor(dense: Tensor, threshold: float, sparsifier: str) -> tuple[Tensor, Tensor]:
    """Return ``(k, f)`` with ``delta = k * f / unit``, f being what the gradient holds constant."""
    factor = get_sparsifier(sparsifier).factor
    if factor is weighted_factor:
        kept = torch.nn.functional.hardshrink(dense, threshold)  # K where |K| > t
        return kept, kept.abs()
    if factor is soft_factor:
        return dense, (dense.abs() - threshold).clamp_min_(0)
    if factor is full_factor:
        return dense, dense.new_ones(()).expand_as(dense)
    return dense, factor(dense, dense.new_tensor(threshold))


def gradient_factor(dense: Tensor, threshold: float, sparsifier: str) -> Tensor | None:
    """What the gradient of K is multiplied with, where that is not the factor itself."""
    gradient = get_sparsifier(sparsifier).gradient
    return None if gradient is None else gradient(dense, dense.new_tensor(threshold))


def write_rows(
    out: Tensor, base: Tensor | None, kept: Tensor, factor: Tensor, scale: float = 1.0
) -> None:
    """``out = base + scale * kept * factor``, or without a base."""
    if base is not None:
        torch.addcmul(base, kept, factor, value=scale, out=out)
    else:
        torch.mul(kept, factor, out=out)
        if scale != 1.0:
            out.mul_(scale)


def write_delta(
    params: tuple[Tensor, ...],
    rule: DeltaRule,
    sparsity: float,
    bracket: Bracket,
    out: Tensor,
    base: Tensor | None = None,
    scale: float = 1.0,
) -> State:
    """Write ``base + scale * delta`` of one matrix into ``out``, both (out, in).

    Args:
        params: in_factors, out_factors and the kernel's scalars.
        rule: how the delta is made.
        sparsity: share of its entries that are zero, in [0, 1].
        bracket: where the threshold was found last; is brought up to date.
        out: receives the result, in the working precision (that of ``params``, at least single).
        base: W0, or None for the delta alone.
        scale: multiplies the delta.

    Returns:
        The threshold (0-dim); the indices of the columns that hold non-zero weights, or None when
        those are most columns, when others have a gradient too, or when chosen columns may come
        out with other bits; the root mean square of K (0-dim) where the factor is relative to it;
        and the means over inputs (out,) and over outputs (in,) that a centred kernel lost.
    """
    matrix = tiles_of(params, rule)
    sparsifier = get_sparsifier(rule.sparsifier)
    search = ThresholdSearch(out.numel(), sparsity, bracket) if rule.competes else None
    centre = write_centred(matrix, out) if get_kernel(rule.kernel).centred else (None, None)
    for columns in cut.column_tiles(*matrix.shape):
        made = centre[0] is not None
        dense = out[:, columns] if made else matrix.tile(columns, out[:, columns]).dense
        if search is not None:
            search.add(dense)
    unit = unit_of(out) if sparsifier.relative else None
    scale = scale if unit is None else scale / float(unit)
    threshold = rule.threshold(out, sparsity) if search is None else search.finish(out)
    limit = float(threshold)
    active = out.new_zeros(out.shape[1])
    height = max(1, cut.TILE // out.shape[1])
    for first in range(0, len(out), height):
        rows = slice(first, first + height)
        kept, factor = split_factor(out[rows], limit, rule.sparsifier)
        torch.maximum(active, _largest(factor, 0), out=active)
        write_rows(out[rows], None if base is None else base[rows], kept, factor, scale)
    if isinstance(matrix, AutogradTiles) or sparsifier.gradient is not None:
        return threshold, None, unit, *centre
    found = active.nonzero()[:, 0]
    return threshold, found if len(found) <= cut.GATHER * len(active) else None, unit, *centre


class TiledMatrix:
    """The delta of one matrix in backward: made again, and differentiated.

    Args:
        params, rule: as in :func:`write_delta`.
        state: what that returned.
    """

    def __init__(self, params: tuple[Tensor, ...], rule: DeltaRule, state: State) -> None:
        threshold, _, unit, inputs, outputs = state
        centre = None if inputs is None or outputs is None else (inputs, outputs)
        self.matrix, self.sparsifier = tiles_of(params, rule, centre), rule.sparsifier
        self.threshold = 0.0 if threshold is None else float(threshold)
        self.unit = 1.0 if unit is None else float(unit)

    def again(
        self,
        columns: Columns,
        out: Tensor | None,
        base: Tensor | None,
        scale: float,
        product: Product | None,
    ) -> None:
        """Write ``base + scale * delta`` of some columns into ``out``, where that is given, and
        take in its gradient, where ``product`` makes one."""
        tile = self.matrix.tile(columns)
        kept, factor = split_factor(tile.dense, self.threshold, self.sparsifier)
        through = gradient_factor(tile.dense, self.threshold, self.sparsifier)
        scale = scale / self.unit
        if out is not None:
            write_rows(out, base, kept, factor, scale)
        if product is not None:
            del kept
            grad = product(tile.columns, factor if through is None else through)
            self.matrix.add_gradients(tile, grad if scale == 1.0 else grad.mul_(scale))

    def gradients(self, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """The gradients of ``params``, in their dtypes; None where not needed."""
        return self.matrix.gradients(needs)


def masked_product(grad_y: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """``(grad_y^T x) * factor``, of which only rows with a non-zero factor are computed.

    ``grad_y`` is (M, out), ``x`` (M, columns), ``factor`` (out, columns).
    """
    rows = active_rows(factor)
    if rows is None:
        return transposed_matmul(grad_y, x).to(factor.dtype).mul_(factor)
    grad = torch.zeros_like(factor)
    grad[rows] = transposed_matmul(grad_y[:, rows], x).to(factor.dtype).mul_(factor[rows])
    return grad


def product_of_entries(
    grad_y: Tensor,
    x: Tensor,
    wanted: Entries | None,
    dtype: torch.dtype,
    out: Tensor | None = None,
) -> Tensor:
    """``grad_y^T x``, of which only ``wanted`` entries are looked at; others may be zero.

    Written into ``out`` where that has its shape and dtype.
    """
    shape = grad_y.shape[1], x.shape[1]
    if out is not None and (out.shape != shape or out.dtype != dtype):
        out = None
    if wanted is not None and dtype == torch.float32 and can_sample(grad_y, x):
        return sampled_product(grad_y, x, wanted, out)
    if out is not None and x.dtype == dtype:
        return transposed_matmul(grad_y, x, out)
    return transposed_matmul(grad_y, x).to(dtype)


def sparse_product(grad_y: Tensor, delta: Tensor) -> Tensor:
    """``grad_y delta``, (M, columns), of which empty rows are left out."""
    rows = active_rows(delta)
    if rows is None:
        return matmul(grad_y, delta.to(grad_y.dtype))
    return matmul(grad_y[:, rows], delta[rows].to(grad_y.dtype))


def active_rows(factor: Tensor) -> Tensor | None:
    """The rows that are not zero, None for all where that is most."""
    rows = _largest(factor, 1).nonzero()[:, 0]
    return rows if len(rows) <= cut.GATHER * len(factor) else None


def _largest(factor: Tensor, dim: int) -> Tensor:
    """The largest magnitude along a dimension."""
    return torch.maximum(factor.amax(dim), factor.amin(dim).neg_())
