"""The entries of a matrix that take part, side by side in memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .sampled import Entries
from .strips import STRIP, run, strips_of


@dataclass(frozen=True)
class Layout:
    """Where each entry that takes part lies: strip by strip, in it row by row.

    Args:
        entries: which take part.
        starts: (strips,), int64: where each strip begins.
        size: how many there are.
    """

    entries: Entries
    starts: Tensor
    size: int

    @classmethod
    def of(cls, entries: Entries) -> "Layout":
        masks = entries.masks
        counts = torch.empty(len(masks), dtype=torch.int64)
        run("snella_count", (), len(masks), masks.numel() * STRIP, masks, masks.shape[1], counts)
        ends = counts.cumsum(0)
        return cls(entries, ends - counts, int(ends[-1]))

    def of_columns(self, columns: slice) -> "Layout":
        """That of some columns, from the first of a strip on; within the same memory."""
        strips = slice(columns.start // STRIP, strips_of(columns.stop))
        return Layout(self.entries.of(columns), self.starts[strips], self.size)

    def pack(self, matrix: Tensor, packed: Tensor, scale: float = 1.0, add: bool = False) -> None:
        """Write the entries of ``scale * matrix``, (out, columns), into ``packed`` (size,), or add
        them to what is there."""
        matrix = matrix if matrix.stride(1) == 1 else matrix.contiguous()
        masks, (rows, columns) = self.entries.masks, matrix.shape
        given = (masks, rows, self.starts, matrix, matrix.stride(0), scale, int(add), packed)
        run("snella_pack", (), len(masks), rows * columns, *given)

    def unpack(self, packed: Tensor, out: Tensor, base: Tensor | None = None) -> None:
        """Write ``packed`` (size,) into ``out`` (out, columns), with ``base``, or 0, between."""
        base = base if base is None or base.stride(1) == 1 else base.contiguous()
        masks, (rows, columns) = self.entries.masks, out.shape
        between = (None, 0) if base is None else (base, base.stride(0))
        given = (masks, rows, self.starts, packed, *between, columns, out, out.stride(0))
        run("snella_unpack", (), len(masks), rows * columns, *given)
