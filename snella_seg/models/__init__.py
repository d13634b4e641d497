"""Registers :class:`SnellaBackbone` in mmsegmentation's MODELS."""

from .. import _require  # noqa: F401
from .backbone import SnellaBackbone

__all__ = ["SnellaBackbone"]
