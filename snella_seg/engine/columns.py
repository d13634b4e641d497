"""How the columns of a matrix are cut into tiles that stay in a cache, and what tiles do."""

import math
from typing import Any, Protocol

from torch import Tensor

#: Weights in a tile, and the least number of columns: small enough to stay in a cache and to be
#: little beside the activations, large enough for matrix products to be efficient.
TILE, MIN_COLUMNS = 400_000, 256
#: By how much tiles may be larger where K and what its derivatives need are not kept for a tile.
WIDER = 2

#: Share of active columns (rows) above which gathering them costs more than it saves.
GATHER = 0.7

#: Some columns of a matrix: a range, or their indices, ascending and each once.
Columns = slice | Tensor


def column_tiles(out_features: int, in_features: int, wider: int = 1) -> list[slice]:
    """Cut the columns of a matrix into tiles of about ``TILE`` weights, near equal in width."""
    widest = wider * max(MIN_COLUMNS, TILE // out_features)
    count = max(1, math.ceil(in_features / widest))
    width = 64 * math.ceil(in_features / count / 64)
    return [slice(i, min(i + width, in_features)) for i in range(0, in_features, width)]


def column_parts(columns: Tensor, out_features: int, wider: int = 1) -> tuple[Tensor, ...]:
    """Cut chosen columns likewise."""
    widest = wider * max(MIN_COLUMNS, TILE // out_features)
    return columns.split(widest) if len(columns) else ()


class Tile(Protocol):
    """K of some columns of a matrix, and whatever else its derivatives need."""

    @property
    def columns(self) -> Columns: ...

    @property
    def dense(self) -> Tensor: ...


class Tiles(Protocol):
    """K of one matrix, tile by tile, and the sums of its parameters' gradients.

    ``params`` are in_factors (H, in, r/H), out_factors (H, out, r/H), then the kernel's scalars.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix, (out, in)."""

    def tile(self, columns: Columns, out: Tensor | None = None) -> Tile:
        """Make K of these columns, in ``out`` where that is given."""

    def add_gradients(self, tile: Any, grad_dense: Tensor) -> None:
        """Take in the gradient of the loss by K of a tile; may overwrite both."""

    def gradients(self, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """The sums as gradients of ``params``, in their dtypes; None where not needed."""


class Product(Protocol):
    """The gradient by some columns of a merged weight, (out, columns)."""

    def __call__(
        self,
        columns: Columns,
        factor: Tensor | None,
        wanted: Any = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Times ``factor`` (out, columns); or without one, where only entries that are ``wanted``
        (:class:`~snella_seg.engine.native.Entries`) are looked at. ``out`` may receive it if it has
        the shape."""
