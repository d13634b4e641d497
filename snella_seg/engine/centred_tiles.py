"""Tiles of a kernel whose means over inputs and over outputs are taken out.

Means over outputs are a column's own. Those over inputs are known when all tiles have been made,
so K is written in two steps, and a gradient takes a second round over the tiles.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from . import columns as cut
from .columns import Columns, Tile, Tiles
from .distance_tiles import DistanceTiles


class CentredTile(NamedTuple):
    """K of some columns, (out, columns), and the tile that it was made of."""

    columns: Columns
    dense: Tensor
    plain: Tile


def write_centred(matrix: Tiles, out: Tensor) -> tuple[Tensor, Tensor]:
    """Fill ``out`` (out, in) with K, centred; return its former means over inputs and outputs."""
    outputs, sums = out.new_empty(out.shape[1]), out.new_zeros(out.shape[0])
    for columns in cut.column_tiles(*matrix.shape):
        dense = matrix.tile(columns, out[:, columns]).dense
        outputs[columns] = dense.mean(0)
        sums += dense.sub_(outputs[columns]).sum(1)
    inputs = sums / out.shape[1]
    out.sub_(inputs[:, None])
    return inputs, outputs


class CentredTiles:
    """K of one matrix, centred as it was when it was written, and the sums of its gradients.

    Args:
        plain: tiles of the kernel's function.
        centre: what :func:`write_centred` returned.
    """

    def __init__(self, plain: Tiles, centre: tuple[Tensor, Tensor]) -> None:
        self.plain = plain
        self.inputs, self.outputs = centre
        self.sums = torch.zeros_like(self.inputs)

    @property
    def shape(self) -> tuple[int, int]:
        return self.plain.shape

    def tile(self, columns: Columns, out: Tensor | None = None) -> CentredTile:
        """Make K of these columns, in ``out`` where that is given: the bits that were written."""
        plain = self.plain.tile(columns, out)
        dense = torch.sub(plain.dense, self.outputs[columns], out=out)
        return CentredTile(columns, dense.sub_(self.inputs[:, None]), plain)

    def add_gradients(self, tile: CentredTile, grad_dense: Tensor) -> None:
        """Take in the gradient of the loss by K of a tile, (out, columns), all but its means."""
        grad_dense = grad_dense.sub_(grad_dense.mean(0))
        self.sums += grad_dense.sum(1)
        self.plain.add_gradients(tile.plain, grad_dense)

    def gradients(self, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """Take the mean over inputs out of the gradient, then as the plain tiles."""
        if any(needs):
            mean = self.sums / -self.shape[1]
            for columns in cut.column_tiles(*self.shape):
                if isinstance(self.plain, DistanceTiles) and not self.plain.mixed:
                    self.plain.add_gradients_of_outputs(columns, mean)
                    continue
                tile = self.plain.tile(columns)
                self.plain.add_gradients(tile, mean[:, None].repeat(1, tile.dense.shape[1]))
        return self.plain.gradients(needs)
