"""Registers what mmengine lacks to optimise mostly frozen models, and to do so on a CPU."""

from .. import _require  # noqa: F401
from .constructor import SnellaOptimWrapperConstructor
from .cpu_amp import CPUAmpOptimWrapper

__all__ = ["CPUAmpOptimWrapper", "SnellaOptimWrapperConstructor"]
