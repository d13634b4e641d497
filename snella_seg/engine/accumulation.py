"""Gradient accumulation: what the micro-batches of one optimizer step share.

Between two steps the factors stand still. So the merged weights of a sparse delta are made by the
first micro-batch and kept where the delta is not zero, and its gradient is summed up there; only
the last one makes the gradients of the factors. Both gradients are sums of the same terms, so they
differ by rounding. For sparse deltas that are made by :mod:`snella_seg.engine.native`; others are
made anew by each micro-batch.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import columns as cut
from .columns import Columns, Product
from .native import Entries, Layout, NativeMatrix
from .tiles import State

if TYPE_CHECKING:
    from .blocks import DeltaBlock


#: Share of entries up to which they are kept: at 8 bytes each, little more than half of what a
#: weight in single precision and its gradient take.
MAX_DENSITY = 0.35
_CHANGED = (
    "factors or sparsity were changed while gradients of earlier micro-batches wait: call "
    "accumulate_gradients(model, False) before the last one"
)


class Accumulator:
    """What one delta keeps until the last micro-batch of a step has been through backward.

    Of an adapted weight of n entries with a share d that is not zero, 8 d n bytes and n / 8 more.

    Attributes:
        more: whether the micro-batch at hand is not the last one.
    """

    def __init__(self) -> None:
        self.more = False
        self._forget()

    def _forget(self) -> None:
        self.state: State = ()
        self.layout: Layout | None = None
        self._made_for: Any = None
        self.merged: Tensor | None = None
        self.sums: Tensor | None = None

    def tell(self, more: bool) -> None:
        """Begin a micro-batch, and a step where the one before was a last one."""
        if more and not self.more and not self.waits:
            self._forget()
        self.more = more

    @property
    def waits(self) -> bool:
        """Whether gradients wait for the last micro-batch."""
        return self.sums is not None

    def recall(
        self, block: "DeltaBlock", out: Tensor, base: Tensor | None, scale: float
    ) -> State | None:
        """Write ``base + scale * delta`` into ``out`` if it is kept; the state, or else None."""
        if self.merged is None or self._made_for != _seen(block, base, scale):
            return None
        assert self.layout is not None
        self.layout.unpack(self.merged, out, base)
        return self.state

    def keep(
        self, block: "DeltaBlock", out: Tensor, base: Tensor | None, scale: float, state: State
    ) -> None:
        """Keep what has been made, where it is sparse and another micro-batch has use for it.

        Raises:
            RuntimeError: when other entries take part than those whose gradients wait.
        """
        if not (self.more or self.waits):
            return
        if state[-1] is None or 1 - block.sparsity > MAX_DENSITY:
            if self.waits:
                raise RuntimeError(_CHANGED)
            return
        entries = Entries.of_state(state[-1], out.shape[1])
        if self.layout is None or not torch.equal(self.layout.entries.masks, entries.masks):
            layout, sums = Layout.of(entries), self.sums
            if sums is not None and (self.layout is not None or len(sums) != layout.size):
                raise RuntimeError(_CHANGED)
            self.layout = layout
        self.state, self._made_for = state, _seen(block, base, scale)
        self.merged = out.new_empty(self.layout.size)
        self.layout.pack(out, self.merged)

    def holds(self, state: State) -> bool:
        """Whether a product's delta, of which this is the state, is the one that is kept."""
        kept = self.state[-1] if self.state else None
        mine = state[-1]
        return kept is not None and mine is not None and kept.data_ptr() == mine.data_ptr()

    def add(self, layout: Layout, grad: Tensor, scale: float) -> None:
        """Add ``scale * grad``, the gradient by some columns of the delta, (out, columns)."""
        if self.sums is None:
            self.sums = torch.zeros(layout.size)
        layout.pack(grad.to(self.sums.dtype), self.sums, scale, add=True)

    def gradients(self, block: "DeltaBlock", needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """Make what has been summed up the gradients of the block's parameters; forget all.

        Args:
            block: whose delta is kept.
            needs: which parameters want a gradient.
        """
        layout, sums = self.layout, self.sums
        assert layout is not None
        matrix = NativeMatrix(block.params, block.rule, self.state)
        rows, width = matrix.shape

        def summed(
            columns: Columns, factor: Tensor | None, wanted: Any = None, out: Tensor | None = None
        ) -> Tensor:
            assert sums is not None and isinstance(columns, slice)
            out = sums.new_empty(rows, columns.stop - columns.start)
            layout.of_columns(columns).unpack(sums, out)
            return out

        if sums is not None:
            for tile in cut.column_tiles(rows, width, cut.WIDER):
                matrix.again(tile, None, None, 1.0, summed)
        self._forget()
        return matrix.gradients(needs)


class AccumulatedMatrix:
    """A matrix whose delta is kept and whose gradient is summed up, in backward in the place of a
    :class:`~snella_seg.engine.native.NativeMatrix`."""

    def __init__(self, block: "DeltaBlock", accumulator: Accumulator) -> None:
        self.block, self.accumulator = block, accumulator

    def again(
        self,
        columns: Columns,
        out: Tensor | None,
        base: Tensor | None,
        scale: float,
        product: Product | None,
    ) -> None:
        """As of :class:`~snella_seg.engine.native.NativeMatrix`, for ranges of columns."""
        kept = self.accumulator
        assert kept.layout is not None and kept.merged is not None and isinstance(columns, slice)
        layout = kept.layout.of_columns(columns)
        if product is not None:
            kept.add(layout, product(columns, None, layout.entries, out), scale)
        if out is not None:
            layout.unpack(kept.merged, out, base)

    def gradients(self, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """Those of the block's parameters, None before the last micro-batch."""
        if self.accumulator.more:
            return (None,) * len(needs)
        return self.accumulator.gradients(self.block, needs)


def _seen(block: "DeltaBlock", base: Tensor | None, scale: float) -> tuple[Any, ...]:
    """What the merged weights depend on."""
    tensors = block.params if base is None else (*block.params, base)
    return block.sparsity, scale, *((t.data_ptr(), t._version) for t in tensors)
