"""Tiles of any kernel: the plain function, differentiated column tile by column tile."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..functional import DeltaRule
from ..functional.delta import in_working_precision
from .columns import Columns


class AutogradTile(NamedTuple):
    """K of some columns, (out, columns), and what its graph starts from."""

    columns: Columns
    dense: Tensor
    graph: Tensor
    leaves: tuple[Tensor, ...]


class AutogradTiles:
    """K of one matrix by its kernel itself, and the sums of its gradients by autograd.

    The kernel must make columns from rows of ``in_factors`` one by one
    (:attr:`snella_seg.functional.kernels.Kernel.columnwise`).

    Args:
        params: in_factors (H, in, r/H), out_factors (H, out, r/H), then the kernel's scalars.
        rule: the kernel and its scale.
    """

    def __init__(self, params: tuple[Tensor, ...], rule: DeltaRule) -> None:
        self.params, self.rule = params, rule
        self.working = tuple(t.detach() for t in in_working_precision(params))
        self.sums = [torch.zeros_like(t) for t in self.working]

    @property
    def shape(self) -> tuple[int, int]:
        return self.working[1].shape[1], self.working[0].shape[1]

    def tile(self, columns: Columns, out: Tensor | None = None) -> AutogradTile:
        """Make K of these columns, in ``out`` where that is given; then without a graph."""
        p, *others = self.working
        leaves = tuple(t.detach().requires_grad_(out is None) for t in (p[:, columns], *others))
        with torch.set_grad_enabled(out is None):
            graph = self.rule.dense(leaves)
        dense = graph.detach() if out is None else out.copy_(graph)
        return AutogradTile(columns, dense, graph, leaves)

    def add_gradients(self, tile: AutogradTile, grad_dense: Tensor) -> None:
        """Take in the gradient of the loss by K of a tile, (out, columns)."""
        grads = torch.autograd.grad(tile.graph, tile.leaves, grad_dense, allow_unused=True)
        for index, grad in enumerate(grads):
            if grad is not None and index == 0:
                self.sums[0][:, tile.columns] += grad
            elif grad is not None:
                self.sums[index] += grad

    def gradients(self, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """The sums as gradients of ``params``, in their dtypes; None where not needed."""
        return tuple(
            total.to(param.dtype) if need else None
            for total, param, need in zip(self.sums, self.params, needs, strict=True)
        )
