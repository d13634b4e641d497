"""What one allocation among matrices needs and leaves: importances, churn, history."""

from .allocator import SparsityAllocator
from .churn import ChurnTracker, current_delta
from .guard import SizeGuard
from .history import HISTORY, append_line, last_line, start_history
from .importances import IMPORTANCES, ImportanceTracker

__all__ = [
    "HISTORY",
    "IMPORTANCES",
    "ChurnTracker",
    "ImportanceTracker",
    "SizeGuard",
    "SparsityAllocator",
    "append_line",
    "current_delta",
    "last_line",
    "start_history",
]
