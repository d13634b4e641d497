"""How work on strips of columns is shared out among threads.

torch's threads on a CPU are an OpenMP team, and between products they wait by spinning: threads of
our own would share their cores with them. So the strips go to the same team where torch's runtime
is GNU's (libgomp, as in torch's wheels for Linux), else to a pool.
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from .library import library

#: Columns of a strip, and a multiple of which the C sources make features and tokens.
STRIP, LANES = 64, 16
#: Weights below which a second thread is not worth its start.
SMALL = 1 << 16


def strips_of(columns: int) -> int:
    """How many strips hold these columns."""
    return -(-columns // STRIP)


_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@lru_cache(maxsize=1)
def _team() -> Any:
    """``team(body, None, count, 0)`` calls ``body(None)`` in each of torch's threads; or None."""
    try:
        team = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):  # another runtime, or a system without names
        return None
    team.argtypes, team.restype = (_BODY, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return team


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """Of this process: threads do not outlive a fork."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="snella")


def _share_out(jobs: Sequence[Callable[[], int]]) -> list[int]:
    """Do jobs side by side, one a thread; what each returns, 1 where it never did."""
    team = _team()
    if team is None:
        others = [_pool(os.getpid()).submit(job) for job in jobs[1:]]
        return [jobs[0](), *(other.result() for other in others)]
    results, left = [1] * len(jobs), iter(range(len(jobs)))

    def body(_: Any) -> None:
        for index in left:  # a team may be smaller than asked for
            results[index] = jobs[index]()

    team(_BODY(body), None, len(jobs), 0)
    return results


def run(name: str, before: tuple[Any, ...], strips: int, weights: int, *after: Any) -> None:
    """Call a function of the library for all strips, or blocks of rows, shared out among threads:
    ``name(*before, begin, end, *after)``."""
    function = getattr(library(), name)
    values = [t.data_ptr() if isinstance(t, Tensor) else t for t in after]
    count = 1 if weights < SMALL else max(1, min(torch.get_num_threads(), strips))
    ends = [strips * part // count for part in range(count + 1)]
    jobs = [
        partial(function, *before, first, last, *values)
        for first, last in zip(ends, ends[1:], strict=False)
    ]
    if any([jobs[0]()] if count == 1 else _share_out(jobs)):
        raise MemoryError(f"no memory for the weight side of {weights} weights")
