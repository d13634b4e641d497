"""Registers the hook that lets matrices compete for the budget with mmengine's HOOKS."""

from .sparsity_allocation import SparsityAllocationHook

__all__ = ["SparsityAllocationHook"]
