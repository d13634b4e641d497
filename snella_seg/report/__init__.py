"""Where a run's budget went, and why: pictures, tables and a page."""

from .. import _require  # noqa: F401
from .write import write_report

__all__ = ["write_report"]
