"""Where a run's budget went, and why: pictures, tables and a page."""

from .write import write_report

__all__ = ["write_report"]
