"""Registers what mmengine lacks to optimise mostly frozen models, and to do so on a CPU."""

from ..configs import require_mmseg

require_mmseg()

from . import layer_decay  # noqa: E402, F401  mmseg's constructors then know wrapped backbones
from .constructor import SnellaOptimWrapperConstructor  # noqa: E402
from .cpu_amp import CPUAmpOptimWrapper  # noqa: E402

__all__ = ["CPUAmpOptimWrapper", "SnellaOptimWrapperConstructor"]
