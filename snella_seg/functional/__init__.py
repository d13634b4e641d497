"""The SNELLA method as pure functions: torch and numpy only, no state, no OpenMMLab import."""

from .allocation import allocate_budget, budget_schedule
from .blocks import DeltaBlock
from .delta import DeltaRule
from .importance import ema_importance, importance_score
from .kernels import KERNELS, distance_kernel, linear_kernel, mixed_kernel
from .product import adapted_linear, adapted_weight
from .sparsify import SPARSIFIERS, sparsify
from .threshold import Bracket, quantile_threshold

__all__ = [
    "KERNELS",
    "SPARSIFIERS",
    "Bracket",
    "DeltaBlock",
    "DeltaRule",
    "adapted_linear",
    "adapted_weight",
    "allocate_budget",
    "budget_schedule",
    "distance_kernel",
    "ema_importance",
    "importance_score",
    "linear_kernel",
    "mixed_kernel",
    "quantile_threshold",
    "sparsify",
]
