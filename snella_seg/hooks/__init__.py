"""Registers hooks with mmengine: competition for the budget, checkpoints, exact resume."""

from ..configs import require_mmseg

require_mmseg()

from .checkpoint import SnellaCheckpointHook  # noqa: E402
from .exact_resume import ExactResumeHook  # noqa: E402
from .sparsity_allocation import SparsityAllocationHook  # noqa: E402

__all__ = ["ExactResumeHook", "SnellaCheckpointHook", "SparsityAllocationHook"]
