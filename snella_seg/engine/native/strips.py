"""How work on strips of columns is shared out among threads."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .library import library

#: Columns of a strip and floats of a vector, as in the C sources.
STRIP, LANES = 64, 16
#: Weights below which a second thread is not worth its start.
SMALL = 1 << 16


def strips_of(columns: int) -> int:
    """How many strips hold these columns."""
    return -(-columns // STRIP)


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """Of this process: threads do not outlive a fork."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="snella")


def run(name: str, before: tuple[Any, ...], strips: int, weights: int, *after: Any) -> None:
    """Call a function of the library for all strips, or blocks of rows, shared out among threads:
    ``name(*before, begin, end, *after)``."""
    function = getattr(library(), name)
    values = [t.data_ptr() if isinstance(t, Tensor) else t for t in after]
    count = 1 if weights < SMALL else max(1, min(torch.get_num_threads(), strips))
    ends = [strips * part // count for part in range(count + 1)]
    calls = [(*before, first, last, *values) for first, last in zip(ends, ends[1:], strict=False)]
    others = [_pool(os.getpid()).submit(function, *call) for call in calls[1:]]
    failed = [function(*calls[0]), *(other.result() for other in others)]
    if any(failed):
        raise MemoryError(f"no memory for the weight side of {weights} weights")
