"""Registers what mmengine lacks to optimise mostly frozen models, and to do so on a CPU."""

from .constructor import SnellaOptimWrapperConstructor
from .cpu_amp import CPUAmpOptimWrapper

__all__ = ["CPUAmpOptimWrapper", "SnellaOptimWrapperConstructor"]
