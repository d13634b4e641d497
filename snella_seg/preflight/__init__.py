"""Looks at a training before it runs: what it will do, what it will cost, what would go wrong."""

from .inspect import preflight
from .report import Report

__all__ = ["Report", "preflight"]
