"""Modules: the adapter of one matrix, and linear and attention layers that carry adapters."""

from .adapted import AdaptedLinear, AdaptedModule, AdaptedMultiheadAttention
from .adapter import SnellaAdapter
from .recompute import disable_recompute, enable_recompute

__all__ = [
    "AdaptedLinear",
    "AdaptedModule",
    "AdaptedMultiheadAttention",
    "SnellaAdapter",
    "disable_recompute",
    "enable_recompute",
]
