"""Tiles of the linear kernel, LoRA's product, arXiv 2106.09685."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..functional import DeltaRule
from ..functional.delta import in_working_precision
from .columns import Columns


class LinearTile(NamedTuple):
    """K of some columns, (out, columns)."""

    columns: Columns
    dense: Tensor


class LinearTiles:
    """``K = scale * sum_h Q_h P_h^T`` of one matrix, tile by tile, and the sums of its gradients.

    Args:
        params: in_factors (H, in, r/H) and out_factors (H, out, r/H).
        rule: gives the scale.
    """

    def __init__(self, params: tuple[Tensor, ...], rule: DeltaRule) -> None:
        self.params, self.scale = params, rule.scale
        working = in_working_precision(params)
        # heads side by side: (features, r)
        self.p, self.q = (t.detach().transpose(0, 1).flatten(1) for t in working)
        self.grad_p, self.grad_q = torch.zeros_like(self.p), torch.zeros_like(self.q)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.q), len(self.p)

    def tile(self, columns: Columns, out: Tensor | None = None) -> LinearTile:
        """Make K of these columns, in ``out`` where that is given."""
        dense = (self.q * self.scale) @ self.p[columns].T
        return LinearTile(columns, dense if out is None else out.copy_(dense))

    def add_gradients(self, tile: LinearTile, grad_dense: Tensor) -> None:
        """Take in the gradient of the loss by K of a tile, (out, columns)."""
        self.grad_p[tile.columns] += grad_dense.T @ self.q
        self.grad_q += grad_dense @ self.p[tile.columns]

    def gradients(self, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """The sums as gradients of ``params``, in their dtypes; None where not needed."""
        return tuple(
            (total * self.scale).unflatten(1, (len(param), -1)).transpose(0, 1).to(param.dtype)
            if need
            else None
            for total, param, need in zip(
                (self.grad_p, self.grad_q), self.params, needs, strict=True
            )
        )
