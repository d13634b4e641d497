"""Modules: the adapter of one matrix, and linear and attention layers that carry adapters."""

from .adapted import AdaptedLinear, AdaptedModule, AdaptedMultiheadAttention
from .adapter import SnellaAdapter

__all__ = ["AdaptedLinear", "AdaptedModule", "AdaptedMultiheadAttention", "SnellaAdapter"]
