"""Looks at a training before it runs: what it will do, what it will cost, what would go wrong."""

from .forecast import Forecast
from .inspect import preflight

__all__ = ["Forecast", "preflight"]
