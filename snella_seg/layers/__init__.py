"""Modules: the adapter of one matrix, and the layers that carry adapters."""

from .adapter import Adapter, SnellaAdapter
from .attention import AdaptedMultiheadAttention, FusedMultiheadAttention
from .convolution import AdaptedConv2d, is_linear_map
from .linear import AdaptedLinear
from .module import AdaptedModule
from .peft_adapter import PeftAdapter
from .recompute import disable_recompute, enable_recompute
from .subclass import adapted_class

__all__ = [
    "AdaptedConv2d",
    "AdaptedLinear",
    "AdaptedModule",
    "AdaptedMultiheadAttention",
    "Adapter",
    "FusedMultiheadAttention",
    "PeftAdapter",
    "SnellaAdapter",
    "adapted_class",
    "disable_recompute",
    "enable_recompute",
    "is_linear_map",
]
