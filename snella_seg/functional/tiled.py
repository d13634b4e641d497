"""The weight side of SNELLA in torch operations: column by column, analytic, nothing kept.

K and its derivatives are made for a tile of input columns at a time (the softmax runs along the
outputs, so columns are independent) in buffers that stay in the processor's cache. Distances come
from a matrix product; pairs of rows that nearly coincide, for which that loses digits, are
taken directly. :class:`snella_seg.functional.DeltaRule` is the plain form of the same mathematics.

A column that holds no weight of the competition has no gradient at all, since K reaches the loss
through its non-zero entries only: backward leaves such columns out.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .delta import DeltaRule
from .linear_tiles import LinearDelta
from .precision import in_working_precision
from .threshold import Bracket, ThresholdSearch

#: Weights in a tile, and the least number of columns: small enough to stay in a cache and to be
#: little beside the activations, large enough for matrix products to be efficient.
TILE, MIN_COLUMNS = 400_000, 256
#: Pairs with ``|p - q|^2 <= NEAR * (|p|^2 + |q|^2)`` have their distance taken directly.
NEAR = 1 / 32
#: In a column with such a pair the least squared distance is at most this many times |p|^2 alone,
#: since such pairs have ``|q| / |p|`` within ``(1 +- sqrt(1 - a^2)) / a`` for ``a = 1 - NEAR``.
_NEAR_COLUMN = NEAR * (1 + ((1 + math.sqrt(1 - (1 - NEAR) ** 2)) / (1 - NEAR)) ** 2)
#: Share of active columns (rows) above which gathering them costs more than it saves.
GATHER = 0.7
_CHUNK = 1 << 16

Columns = slice | Tensor


def column_tiles(out_features: int, in_features: int) -> list[slice]:
    """Cut the columns of a matrix into tiles of about ``TILE`` weights, near equal in width."""
    widest = max(MIN_COLUMNS, TILE // out_features)
    count = max(1, math.ceil(in_features / widest))
    width = 32 * math.ceil(in_features / count / 32)
    return [slice(i, min(i + width, in_features)) for i in range(0, in_features, width)]


def column_parts(columns: Tensor, out_features: int) -> tuple[Tensor, ...]:
    """Cut chosen columns likewise."""
    return columns.split(max(MIN_COLUMNS, TILE // out_features)) if len(columns) else ()


class Tile(NamedTuple):
    """K of some columns, and what its derivatives need; all of shape (out, columns) but these."""

    columns: Columns
    distances: Tensor  # (H, out, columns), times the scale
    difference: Tensor  # D
    softmax: Tensor | None
    dense: Tensor  # K
    near: tuple[Tensor, Tensor, Tensor] | None  # head, output, column of the nearly equal pairs


def tiled_delta(params: tuple[Tensor, ...], rule: DeltaRule) -> "TiledDelta | LinearDelta":
    """K of one matrix, tile by tile, by the kernel of ``rule``."""
    return (LinearDelta if rule.kernel == "linear" else TiledDelta)(params, rule)


class TiledDelta:
    """K of the distance kernels, tile by tile, and the sums of its gradients.

    Args:
        params: in_factors (H, in, r/H), out_factors (H, out, r/H), then the kernel's scalars.
        rule: kernel, sparsifier and scale.
    """

    def __init__(self, params: tuple[Tensor, ...], rule: DeltaRule) -> None:
        self.params = params
        p, q, *scalars = (t.detach() for t in in_working_precision(params))
        self.factors, self.scale = (p, q), rule.scale
        self.p, self.q = p * self.scale, q * self.scale  # so that distances come scaled
        self.alpha, self.gamma, self.beta = map(float, scalars) if scalars else (0.0, 1.0, 0.0)
        self.mixed = bool(scalars)
        self.gamma = self.gamma or 1e-150  # so that a run that diverged shows NaN
        ones = self.p.new_ones(())
        self.p_squared, q_squared = (f.square().sum(-1) for f in (self.p, self.q))
        # |p|^2 + |q|^2 - 2 p.q as one product of rows (p, 1, |p|^2) and (-2q, |q|^2, 1)
        p1, q1 = (ones.expand(*f.shape[:2], 1) for f in (self.p, self.q))
        self.p_rows = torch.cat([self.p, p1, self.p_squared[..., None]], -1)
        self.q_rows = torch.cat([-2 * self.q, q_squared[..., None], q1], -1)
        self.q_squared = q_squared
        self.grad_p, self.grad_q = torch.zeros_like(self.p), torch.zeros_like(self.q)
        self.grad_alpha = self.grad_gamma = self.grad_beta = self.p.new_zeros(())

    @property
    def shape(self) -> tuple[int, int]:
        return self.q.shape[1], self.p.shape[1]

    def tile(self, columns: Columns, out: Tensor | None = None) -> Tile:
        """Make K of these columns, in ``out`` where that is given."""
        squares = torch.bmm(self.q_rows, self.p_rows[:, columns].transpose(1, 2))
        near = self._mend_near_pairs(squares, columns)
        distances = squares.sqrt_()
        difference = distances[0].clone() if len(distances) == 1 else distances[0] - distances[1]
        for head in range(2, len(distances)):
            difference.add_(distances[head], alpha=1 if head % 2 == 0 else -1)
        if not self.mixed:
            dense = difference if out is None else out.copy_(difference)
            return Tile(columns, distances, difference, None, dense, near)
        dense = difference * (1 / self.gamma)
        softmax = torch.softmax(dense, 0)
        torch.add(difference, softmax, alpha=self.alpha, out=dense)
        dense = torch.add(dense, self.beta, out=dense if out is None else out)
        return Tile(columns, distances, difference, softmax, dense, near)

    def _mend_near_pairs(self, squares: Tensor, columns: Columns):
        """Replace the squared distances that lost digits; return where they are, or None."""
        p_squared = self.p_squared[:, columns]
        head, column = (squares.amin(1) <= _NEAR_COLUMN * p_squared).nonzero(as_tuple=True)
        if not len(head):
            return None
        bound = NEAR * (self.q_squared[head] + p_squared[head, column, None])  # (n, out)
        pair, out = (squares[head, :, column] <= bound).nonzero(as_tuple=True)
        if not len(pair):
            return None
        near = head[pair], out, column[pair]
        for h, o, c in zip(*(index.split(_CHUNK) for index in near), strict=True):
            squares[h, o, c] = self._steps(h, o, c, columns).square().sum(-1)
        return near

    def _steps(self, head: Tensor, out: Tensor, column: Tensor, columns: Columns) -> Tensor:
        """``p - q`` of some pairs, (n, r/H); the difference is taken before it is scaled."""
        return (self.factors[0][:, columns][head, column] - self.factors[1][head, out]) * self.scale

    def add_gradients(self, tile: Tile, grad_dense: Tensor) -> None:
        """Take in the gradient of the loss by K of a tile, (out, columns).

        Overwrites ``grad_dense`` and the tile's distances, softmax and K.
        """
        grad_difference = grad_dense
        if self.mixed:
            self.grad_beta = self.grad_beta + grad_dense.sum()
            inner = torch.mul(grad_dense, tile.softmax, out=tile.dense).sum(0)  # (columns,)
            self.grad_alpha = self.grad_alpha + inner.sum()
            through = tile.softmax.mul_(torch.sub(grad_dense, inner, out=tile.dense))
            along = torch.dot(through.flatten(), tile.difference.flatten())
            self.grad_gamma = self.grad_gamma - along * (self.alpha / self.gamma**2)
            grad_difference = grad_dense.add_(through, alpha=self.alpha / self.gamma)
        p, p_rows = self.p[:, tile.columns], self.p_rows[:, tile.columns]
        near_ratios = None
        if tile.near is not None:
            head, out, column = tile.near
            signs = 1 - 2 * (head % 2)
            near_ratios = signs * grad_difference[out, column] / tile.distances[tile.near]
            near_ratios[tile.distances[tile.near] == 0] = 0
            tile.distances[tile.near] = math.inf  # leaves them out of the products below
        ratios = torch.div(grad_difference, tile.distances, out=tile.distances)  # (H, out, columns)
        ratios[1::2].neg_()
        # (-2 sum r q, ., sum r) per column and (sum r p, sum r, .) per output, the quick way round
        by_p = torch.bmm(self.q_rows.transpose(1, 2), ratios).transpose(1, 2)
        by_q = torch.bmm(p_rows.transpose(1, 2), ratios.transpose(1, 2)).transpose(1, 2)
        grad_p = by_p[..., -1:] * p + by_p[..., :-2] * 0.5
        self.grad_q += by_q[..., -2:-1] * self.q - by_q[..., :-2]
        if near_ratios is not None:
            parts = zip(
                near_ratios.split(_CHUNK), *(i.split(_CHUNK) for i in tile.near), strict=True
            )
            for ratio, h, o, c in parts:
                change = ratio[:, None] * self._steps(h, o, c, tile.columns)
                grad_p.index_put_((h, c), change, accumulate=True)
                self.grad_q.index_put_((h, o), -change, accumulate=True)
        self.grad_p[:, tile.columns] = grad_p

    def gradients(self, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """The sums as gradients of ``params``, in their dtypes; None where not needed."""
        sums = [self.grad_p * self.scale, self.grad_q * self.scale]
        if self.mixed:
            sums += [self.grad_alpha, self.grad_gamma, self.grad_beta]
        return tuple(
            total.to(param.dtype).reshape(param.shape) if need else None
            for total, param, need in zip(sums, self.params, needs, strict=True)
        )


def split_factor(dense: Tensor, threshold: float, sparsifier: str) -> tuple[Tensor, Tensor]:
    """Return ``(k, f)`` with ``delta = k * f``, f >= 0 being what the gradient holds constant."""
    if sparsifier == "weighted":
        kept = torch.nn.functional.hardshrink(dense, threshold)  # K where |K| > t
        return kept, kept.abs()
    if sparsifier == "soft":
        return dense, (dense.abs() - threshold).clamp_min_(0)
    if sparsifier == "none":
        return dense, dense.new_ones(()).expand_as(dense)
    return dense, (dense.abs() > threshold).to(dense.dtype)


def write(
    out: Tensor, base: Tensor | None, kept: Tensor, factor: Tensor, scale: float = 1.0
) -> None:
    """``out = base + scale * kept * factor``, or without a base."""
    if base is not None:
        torch.addcmul(base, kept, factor, value=scale, out=out)
    else:
        torch.mul(kept, factor, out=out)
        if scale != 1.0:
            out.mul_(scale)


def masked_product(grad_y: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """``(grad_y^T x) * factor``, of which only rows with a non-zero factor are computed.

    ``grad_y`` is (M, out), ``x`` (M, columns), ``factor`` (out, columns).
    """
    rows = factor.amax(1).nonzero()[:, 0]
    if len(rows) > GATHER * len(factor):
        return (grad_y.T @ x).to(factor.dtype).mul_(factor)
    grad = torch.zeros_like(factor)
    grad[rows] = (grad_y[:, rows].T @ x).to(factor.dtype).mul_(factor[rows])
    return grad


def sparse_product(grad_y: Tensor, kept: Tensor, factor: Tensor) -> Tensor:
    """``grad_y (kept * factor)``, (M, columns), of which empty rows are left out."""
    rows = factor.amax(1).nonzero()[:, 0]
    if len(rows) > GATHER * len(factor):
        return grad_y @ (kept * factor).to(grad_y.dtype)
    return grad_y[:, rows] @ (kept[rows] * factor[rows]).to(grad_y.dtype)


def make_delta(
    params: tuple[Tensor, ...],
    rule: DeltaRule,
    sparsity: float,
    bracket: Bracket,
    out: Tensor,
    base: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor | None]:
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
        The threshold (0-dim) and the indices of the columns that hold non-zero weights, or None
        when those are most columns.
    """
    matrix = tiled_delta(params, rule)
    competes = rule.sparsifier != "none"
    search = ThresholdSearch(out.numel(), sparsity, bracket) if competes else None
    for columns in column_tiles(*matrix.shape):
        dense = matrix.tile(columns, out[:, columns]).dense
        if competes:
            search.add(dense)
    threshold = search.finish(out) if competes else rule.threshold(out, sparsity)
    cut = float(threshold)
    active = out.new_zeros(out.shape[1])
    height = max(1, TILE // out.shape[1])
    for first in range(0, len(out), height):
        rows = slice(first, first + height)
        kept, factor = split_factor(out[rows], cut, rule.sparsifier)
        torch.maximum(active, factor.amax(0), out=active)
        write(out[rows], None if base is None else base[rows], kept, factor, scale)
    found = active.nonzero()[:, 0]
    return threshold, found if len(found) <= GATHER * len(active) else None
