"""Registers the hook that lets matrices compete for the budget with mmengine's HOOKS."""

from .. import _require  # noqa: F401
from .sparsity_allocation import SparsityAllocationHook

__all__ = ["SparsityAllocationHook"]
