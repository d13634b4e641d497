"""Registers :class:`SnellaBackbone` in mmsegmentation's MODELS."""

from .backbone import SnellaBackbone

__all__ = ["SnellaBackbone"]
