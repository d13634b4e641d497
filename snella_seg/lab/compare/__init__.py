"""Compares ways of tuning a backbone on a user's own config: trains, measures, reports."""

from .forgetting import source_config
from .study import compare

__all__ = ["compare", "source_config"]
