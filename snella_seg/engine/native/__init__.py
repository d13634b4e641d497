"""The weight side of the distance kernels in C, compiled on the user's machine.

Plain torch (:mod:`snella_seg.engine.tiles`) stays the fallback, and what it is compared with.
"""

from .library import Unavailable, library
from .matrix import NativeMatrix, knows, write_delta
from .packed import Layout
from .sampled import Entries, can_sample, sampled_product

__all__ = [
    "Entries",
    "Layout",
    "NativeMatrix",
    "Unavailable",
    "can_sample",
    "knows",
    "library",
    "sampled_product",
    "write_delta",
]
