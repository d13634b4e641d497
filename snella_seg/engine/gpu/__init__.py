"""Deltas on a GPU: Triton kernels, and what launches them."""

from .group import KINDS, alike, available, knows
from .launch import launch_backward, launch_backwards, launch_delta, launch_deltas
from .tiling import tiles_for

__all__ = [
    "KINDS",
    "alike",
    "available",
    "knows",
    "launch_backward",
    "launch_backwards",
    "launch_delta",
    "launch_deltas",
    "tiles_for",
]
