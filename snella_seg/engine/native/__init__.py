"""The weight side of the distance kernels in C, compiled on the user's machine.

Plain torch (:mod:`snella_seg.engine.tiles`) stays the fallback, and what it is compared with.
"""

from .library import Unavailable, library
from .matrix import NativeMatrix, knows, write_delta

__all__ = ["NativeMatrix", "Unavailable", "knows", "library", "write_delta"]
