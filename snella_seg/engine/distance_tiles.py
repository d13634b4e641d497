"""Tiles of the distance kernels: SNELLA, arXiv 2510.24037, and SNELL, arXiv 2411.01800.

K and its derivatives are written out and made for some input columns at a time; the softmax runs
along the outputs, so columns are independent. Distances come from a matrix product; pairs of rows
that nearly coincide, for which that loses digits, are taken directly. The definition is
:func:`snella_seg.functional.mixed_kernel`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..functional import DeltaRule
from ..functional.delta import in_working_precision
from ..functional.kernels import head_weights
from .columns import Columns

#: Pairs with ``|p - q|^2 <= NEAR * (|p|^2 + |q|^2)`` have their distance taken directly.
NEAR = 1 / 32
#: In a column with such a pair the least squared distance is at most this many times |p|^2 alone,
#: since such pairs have ``|q| / |p|`` within ``(1 +- sqrt(1 - a^2)) / a`` for ``a = 1 - NEAR``.
_NEAR_COLUMN = NEAR * (1 + ((1 + math.sqrt(1 - (1 - NEAR) ** 2)) / (1 - NEAR)) ** 2)
_CHUNK = 1 << 16


class DistanceTile(NamedTuple):
    """K of some columns, and what its derivatives need; all of shape (out, columns) but these."""

    columns: Columns
    distances: Tensor  # (H, out, columns), times the scale
    difference: Tensor  # D
    softmax: Tensor | None
    dense: Tensor  # K
    near: tuple[Tensor, Tensor, Tensor] | None  # head, output, column of the nearly equal pairs


class DistanceTiles:
    """K of one matrix, tile by tile, and the sums of its gradients.

    Args:
        params: in_factors (H, in, r/H), out_factors (H, out, r/H), then the kernel's scalars.
        rule: kernel ('distance' or 'mixed') and scale.
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

    def tile(self, columns: Columns, out: Tensor | None = None) -> DistanceTile:
        """Make K of these columns, in ``out`` where that is given."""
        squares = torch.bmm(self.q_rows, self.p_rows[:, columns].transpose(1, 2))
        near = self._mend_near_pairs(squares, columns)
        distances = squares.sqrt_()
        difference = distances[0].clone() if len(distances) == 1 else distances[0] - distances[1]
        for head in range(2, len(distances)):
            difference.add_(distances[head], alpha=1 if head % 2 == 0 else -1)
        if not self.mixed:
            dense = difference if out is None else out.copy_(difference)
            return DistanceTile(columns, distances, difference, None, dense, near)
        dense = difference * (1 / self.gamma)
        softmax = torch.softmax(dense, 0)
        torch.add(difference, softmax, alpha=self.alpha, out=dense)
        dense = torch.add(dense, self.beta, out=dense if out is None else out)
        return DistanceTile(columns, distances, difference, softmax, dense, near)

    def _mend_near_pairs(
        self, squares: Tensor, columns: Columns
    ) -> tuple[Tensor, Tensor, Tensor] | None:
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

    def add_gradients(self, tile: DistanceTile, grad_dense: Tensor) -> None:
        """Take in the gradient of the loss by K of a tile, (out, columns).

        Overwrites ``grad_dense`` and the tile's distances, softmax and K.
        """
        grad_difference = grad_dense
        if tile.softmax is not None:
            self.grad_beta = self.grad_beta + grad_dense.sum()
            inner = torch.mul(grad_dense, tile.softmax, out=tile.dense).sum(0)  # (columns,)
            self.grad_alpha = self.grad_alpha + inner.sum()
            through = tile.softmax.mul_(torch.sub(grad_dense, inner, out=tile.dense))
            along = torch.dot(through.flatten(), tile.difference.flatten())
            self.grad_gamma = self.grad_gamma - along * (self.alpha / self.gamma**2)
            grad_difference = grad_dense.add_(through, alpha=self.alpha / self.gamma)
        p_rows = self.p_rows[:, tile.columns]
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
        by_p = torch.bmm(self.q_rows.transpose(1, 2), ratios)
        by_q = torch.bmm(p_rows.transpose(1, 2), ratios.transpose(1, 2))
        self._add_products(tile.columns, by_p, by_q, tile.near, near_ratios)

    def add_gradients_of_outputs(self, columns: Columns, grad: Tensor) -> None:
        """Take in a gradient by D that is the same in all of these columns, (out,).

        One with which :meth:`add_gradients` would do as well, from a tile and a matrix of ``grad``.
        """
        p_rows = self.p_rows[:, columns]
        inverses = torch.bmm(self.q_rows, p_rows.transpose(1, 2))
        near = self._mend_near_pairs(inverses, columns)
        inverses.rsqrt_()
        signed = grad[:, None] * head_weights(len(self.q), 1.0, grad)[:, None, None]  # (H, out, 1)
        near_ratios = None
        if near is not None:
            near_ratios = signed[near[0], near[1], 0] * inverses[near]
            near_ratios[inverses[near] == math.inf] = 0
            inverses[near] = 0
        by_p = torch.bmm((self.q_rows * signed).transpose(1, 2), inverses)
        by_q = torch.bmm(p_rows.transpose(1, 2), inverses.transpose(1, 2)) * signed.transpose(1, 2)
        self._add_products(columns, by_p, by_q, near, near_ratios)

    def _add_products(
        self,
        columns: Columns,
        by_p: Tensor,
        by_q: Tensor,
        near: tuple[Tensor, Tensor, Tensor] | None,
        near_ratios: Tensor | None,
    ) -> None:
        """Take in products of ratios with the rows, (H, r/H + 2, columns) and (., ., out)."""
        by_p, by_q = by_p.transpose(1, 2), by_q.transpose(1, 2)
        grad_p = by_p[..., -1:] * self.p[:, columns] + by_p[..., :-2] * 0.5
        self.grad_q += by_q[..., -2:-1] * self.q - by_q[..., :-2]
        if near_ratios is not None and near is not None:
            parts = zip(near_ratios.split(_CHUNK), *(i.split(_CHUNK) for i in near), strict=True)
            for ratio, h, o, c in parts:
                change = ratio[:, None] * self._steps(h, o, c, columns)
                grad_p.index_put_((h, c), change, accumulate=True)
                self.grad_q.index_put_((h, o), -change, accumulate=True)
        self.grad_p[:, columns] += grad_p

    def gradients(self, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """The sums as gradients of ``params``, in their dtypes; None where not needed."""
        sums = [self.grad_p * self.scale, self.grad_q * self.scale]
        if self.mixed:
            sums += [self.grad_alpha, self.grad_gamma, self.grad_beta]
        return tuple(
            total.to(param.dtype).reshape(param.shape) if need else None
            for total, param, need in zip(sums, self.params, needs, strict=True)
        )
