"""Registers hooks with mmengine's HOOKS: competition for the budget, and checkpoints."""

from .. import _require  # noqa: F401
from .checkpoint import SnellaCheckpointHook
from .sparsity_allocation import SparsityAllocationHook

__all__ = ["SnellaCheckpointHook", "SparsityAllocationHook"]
