"""The delta of some rows of a frozen weight, as the recipe that makes it, and who makes it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import torch
from torch import Tensor

from ..functional import DeltaRule
from ..functional.delta import HALF
from . import gpu, native, self_check, tiles
from .accumulation import Accumulator
from .threshold_search import Bracket
from .tiles import State


class Maker(Enum):
    """What makes a delta."""

    TILES = "tiles"
    NATIVE = "native"
    TRITON = "triton"
    WHOLE = "whole"


@dataclass
class DeltaBlock:
    """The sparse delta of the rows ``start:stop`` of a weight, as the recipe that makes it.

    Args:
        start, stop: row range of the weight that this delta adds to.
        rule: how it is made; a :class:`DeltaRule`, or anything that is called as one is.
        sparsity: share of its entries that are zero, in [0, 1].
        params: in_factors (H, in, r/H), out_factors (H, stop - start, r/H), then scalars; or
            whatever the rule takes.
        bracket: where its threshold was last time; kept by whoever makes blocks again and again.
        accumulator: what the micro-batches of a step share, likewise; None for one at a time.
    """

    start: int
    stop: int
    rule: DeltaRule
    sparsity: float
    params: tuple[Tensor, ...]
    bracket: Bracket = field(default_factory=Bracket)
    accumulator: Accumulator | None = None

    @property
    def rows(self) -> slice:
        """The row range of the weight."""
        return slice(self.start, self.stop)

    def with_params(self, params: tuple[Tensor, ...]) -> "DeltaBlock":
        """The same block over other tensors of the same values."""
        return replace(self, params=params)

    @property
    def working_dtype(self) -> torch.dtype:
        """In which the delta is made: the factors' dtype, but single precision for half."""
        dtype = self.params[0].dtype
        return torch.float32 if dtype in HALF else dtype

    @property
    def by_triton(self) -> bool:
        """Whether the Triton kernels make this delta; at first they have to prove themselves."""
        factors = self.params[0]
        return (
            factors.is_cuda
            and factors.dtype != torch.float64
            and isinstance(self.rule, DeltaRule)
            and gpu.knows(self.rule)
            and gpu.available(factors.device)
            and self_check.triton_reason(self.rule, factors.device) is None
        )

    @property
    def by_native(self) -> bool:
        """Whether the compiled library makes this delta; at first it has to prove itself."""
        return (
            not self.params[0].is_cuda
            and self.working_dtype == torch.float32
            and isinstance(self.rule, DeltaRule)
            and native.knows(self.rule)
            and self_check.native_reason(self.rule) is None
        )


@dataclass
class MadeBlock:
    """A block in backward: the state that making it left, and which parameters want gradients."""

    block: DeltaBlock
    state: State
    needs: tuple[bool, ...]

    @property
    def active(self) -> Tensor | None:
        """Of a delta of tiles: the columns that are differentiated, None for most or all."""
        return None if self.accumulator is not None else self.state[1]

    @property
    def accumulator(self) -> Accumulator | None:
        """What keeps this delta, and takes its gradient, until the last micro-batch of a step."""
        kept_by = self.block.accumulator
        return kept_by if kept_by is not None and kept_by.holds(self.state) else None


def makers(blocks: Sequence[DeltaBlock]) -> list[Maker]:
    """What makes the delta of each block: the same whenever it is asked of the same blocks.

    Tiles wait for the device at each tile and need the whole weight to be theirs, so they are for
    CPUs, and for weights all of whose deltas can be made of parts.
    """
    tiled = all(
        not block.params[0].is_cuda
        and not block.by_triton
        and isinstance(block.rule, DeltaRule)
        and tiles.can_tile(block.rule)
        for block in blocks
    )
    if tiled:
        return [Maker.NATIVE if block.by_native else Maker.TILES for block in blocks]
    return [Maker.TRITON if block.by_triton else Maker.WHOLE for block in blocks]


def launches(blocks: Sequence[DeltaBlock]) -> list[tuple[Maker, list[DeltaBlock]]]:
    """Blocks that are made at once, in order: on a GPU those that are alike and lie as far apart.

    A launch costs the same for one matrix as for several, such as q, k and v of an attention.
    """
    groups: list[tuple[Maker, list[DeltaBlock]]] = []
    for maker, block in zip(makers(blocks), blocks, strict=True):
        last = groups[-1][1] if groups and maker is groups[-1][0] is Maker.TRITON else []
        if last and _continues(last, block):
            last.append(block)
        else:
            groups.append((maker, [block]))
    return groups


def _continues(group: list[DeltaBlock], block: DeltaBlock) -> bool:
    first, last = group[0], group[-1]
    step = block.start - last.start
    return (
        block.rule == first.rule
        and gpu.alike(block.params) == gpu.alike(first.params)
        and step >= block.stop - block.start
        and (len(group) == 1 or step == group[1].start - first.start)
    )


def stacked(matrix: Tensor, group: Sequence[DeltaBlock]) -> Tensor:
    """The rows of blocks that lie equally far apart, (G, rows, in), as a view."""
    first, last = group[0], group[-1]
    rows = first.stop - first.start
    step = group[1].start - first.start if len(group) > 1 else rows
    return matrix[first.start : last.stop].unfold(0, rows, step).transpose(1, 2)
