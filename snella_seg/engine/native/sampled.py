"""Which entries of a delta take part, and products of which only those are made.

The gradient of a delta is asked for at its non-zero entries alone, so most of ``g^T x`` need not be
multiplied out. A dot product of two rows of tokens costs more than its share of a whole product,
so this pays where the delta is sparse.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import columns as cut
from ..columns import Columns
from ..processor import is_zen_5
from .strips import LANES, STRIP, run, strips_of

#: Share of entries up to which they alone are made faster than the whole product, ...
MAX_DENSITY = 0.35
#: ... and on AMD's processors from Zen 5 on.
MAX_DENSITY_ZEN_5 = 0.6
#: Rows of the product that are made together, as in ``sampled.c``.
BLOCK = 128


@dataclass(frozen=True)
class Entries:
    """The entries of a delta, or of some of its columns, that take part.

    Args:
        masks: (strips, out), int64: a bit for each column of a strip.
        columns: how many there are.
    """

    masks: Tensor
    columns: int

    @classmethod
    def of_state(cls, masks: Tensor, columns: int) -> "Entries":
        """Of masks in the guise of floats, (strips, 2 out), as a state carries them."""
        aligned = masks if masks.storage_offset() % 2 == 0 else masks.clone()
        return cls(aligned.view(torch.int64), columns)

    def active(self) -> Tensor | None:
        """Indices of the columns that hold such an entry, None when those are most."""
        rows = torch.from_numpy(np.bitwise_or.reduce(self.masks.numpy(), axis=1))
        found = ((rows[:, None] >> torch.arange(STRIP)) & 1).flatten().nonzero()[:, 0]
        return found if len(found) <= cut.GATHER * self.columns else None

    def of(self, chosen: Columns) -> "Entries":
        """Those of some columns."""
        if isinstance(chosen, slice):
            if chosen.start % STRIP == 0:
                strips = slice(chosen.start // STRIP, strips_of(chosen.stop))
                return Entries(self.masks[strips], chosen.stop - chosen.start)
            chosen = torch.arange(chosen.start, chosen.stop)
        parts = []
        for some in chosen.split(STRIP):
            bits = (self.masks[some // STRIP] >> (some % STRIP)[:, None]) & 1
            parts.append((bits << torch.arange(len(some))[:, None]).sum(0))
        return Entries(torch.stack(parts), len(chosen))


def max_density() -> float:
    """Share of entries up to which they alone are made on this machine's processor."""
    return MAX_DENSITY_ZEN_5 if is_zen_5() else MAX_DENSITY


def can_sample(left: Tensor, right: Tensor) -> bool:
    """Whether :func:`sampled_product` takes such operands."""
    return (
        len(left) > 0
        and left.dtype == right.dtype == torch.float32
        and left.device.type == right.device.type == "cpu"
    )


def sampled_product(
    left: Tensor, right: Tensor, wanted: Entries, out: Tensor | None = None
) -> Tensor:
    """``left^T right`` of (M, out) and (M, columns) at the wanted entries, 0 elsewhere.

    Written into ``out`` where that is given. Its bits do not depend on the number of threads.
    """
    (tokens, outs), columns = left.shape, right.shape[1]
    left, right = (t if t.stride(1) == 1 else t.contiguous() for t in (left, right))
    out = left.new_empty(outs, columns) if out is None else out
    if outs > columns:  # the smaller operand is turned at once, the other part by part
        parts, sources = -(-outs // BLOCK), (left, left.stride(0), outs, _turned(right, STRIP), -1)
    else:
        sources = (_turned(left, BLOCK), -1, outs, right, right.stride(0))
        parts = strips_of(columns)
    result = (wanted.masks, out, out.stride(0))
    run("snella_sample", (), parts, outs * columns, *sources, tokens, columns, *result)
    return out


def _turned(operand: Tensor, width: int) -> Tensor:
    """An operand (M, features) with each feature's tokens side by side, in parts of ``width``
    features, as ``sampled.c`` takes it."""
    tokens, features = operand.shape
    parts = -(-features // width)
    turned = operand.new_empty(parts * width * -(-tokens // LANES) * LANES)
    given = (operand, operand.stride(0), tokens, features, width, turned)
    run("snella_turn", (), parts, features * tokens, *given)
    return turned
