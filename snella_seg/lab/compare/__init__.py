"""Compares ways of tuning a backbone on a user's own config: trains, measures, reports."""

from .study import compare

__all__ = ["compare"]
