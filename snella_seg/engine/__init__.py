"""How the definition in :mod:`snella_seg.functional` is computed fast.

:func:`adapted_linear` is the entry: a linear layer with a frozen weight and sparse deltas, each a
:class:`DeltaBlock`. The rest of the room is what it takes: which precision, who makes a delta
(``stack``: tiles on a CPU, Triton on a GPU, the rule itself), what is kept and what made again.
"""

from .accumulation import Accumulator
from .blocks import DeltaBlock
from .product import adapted_linear, adapted_weight
from .stack import merge_deltas
from .threshold_search import Bracket, find_threshold

__all__ = [
    "Accumulator",
    "Bracket",
    "DeltaBlock",
    "adapted_linear",
    "adapted_weight",
    "find_threshold",
    "merge_deltas",
]
