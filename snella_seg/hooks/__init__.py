"""Registers hooks with mmengine: the budget, checkpoints, exact resume, steps that are left out."""

from ..configs import require_mmseg

require_mmseg()

from .checkpoint import SnellaCheckpointHook  # noqa: E402
from .exact_resume import ExactResumeHook  # noqa: E402
from .finite_steps import FiniteStepsHook, TrainingDiverged  # noqa: E402
from .label_check import BadLabels, LabelCheckHook  # noqa: E402
from .sparsity_allocation import SparsityAllocationHook  # noqa: E402

__all__ = [
    "BadLabels",
    "ExactResumeHook",
    "FiniteStepsHook",
    "LabelCheckHook",
    "SnellaCheckpointHook",
    "SparsityAllocationHook",
    "TrainingDiverged",
]
