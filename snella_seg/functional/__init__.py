"""The SNELLA method as pure functions: the definition, and nothing of how it is computed fast.

torch and numpy only, no state. :mod:`snella_seg.engine` computes the same quickly.
"""

from .allocation import allocate_budget, moved_share
from .delta import DeltaRule
from .importance import (
    counts_above_common_threshold,
    ema_importance,
    ema_importance_,
    importance_score,
    magnitude_histogram,
)
from .kernels import (
    KERNELS,
    distance_kernel,
    get_kernel,
    linear_kernel,
    mixed_kernel,
    register_kernel,
)
from .schedule import SCHEDULES, budget_schedule
from .sparsify import SPARSIFIERS, get_sparsifier, register_sparsifier, sparsify
from .threshold import quantile_threshold

__all__ = [
    "KERNELS",
    "SCHEDULES",
    "SPARSIFIERS",
    "DeltaRule",
    "allocate_budget",
    "budget_schedule",
    "counts_above_common_threshold",
    "distance_kernel",
    "ema_importance",
    "ema_importance_",
    "get_kernel",
    "get_sparsifier",
    "importance_score",
    "linear_kernel",
    "magnitude_histogram",
    "mixed_kernel",
    "moved_share",
    "quantile_threshold",
    "register_kernel",
    "register_sparsifier",
    "sparsify",
]
