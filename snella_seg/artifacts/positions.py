"""Positions in a tensor, coded in the shortest of three ways: a bit mask, gaps of 8 or 16 bits."""

import math

import numpy as np


def encode_positions(positions: np.ndarray, size: int) -> tuple[str, np.ndarray]:
    """Code ascending positions below ``size`` in the shortest way.

    ``'mask'``: a bit per weight. ``'gap8'``, ``'gap16'``: the number of weights passed over before
    each position, in words of 8 or 16 bits; the largest word says that as many are passed over and
    the gap goes on.

    Returns:
        The way, and its words, uint8 or uint16.
    """
    gaps = np.diff(positions, prepend=-1) - 1
    sizes = {"mask": -(-size // 8)}
    for way, dtype in (("gap8", np.uint8), ("gap16", np.uint16)):
        sizes[way] = int((gaps // np.iinfo(dtype).max + 1).sum()) * np.dtype(dtype).itemsize
    way = min(sizes, key=sizes.get)
    if way == "mask":
        mask = np.zeros(size, bool)
        mask[positions] = True
        return way, np.packbits(mask)
    dtype = np.uint8 if way == "gap8" else np.uint16
    full = np.iinfo(dtype).max
    ends = np.cumsum(gaps // full + 1) - 1
    words = np.full(ends[-1] + 1 if len(ends) else 0, full, dtype)
    words[ends] = gaps % full
    return way, words


def decode_positions(way: str, words: np.ndarray, size: int) -> np.ndarray:
    """The positions that :func:`encode_positions` has coded, int64.

    Raises:
        ValueError: on an unknown way, or positions beyond ``size``.
    """
    dtype = {"mask": np.uint8, "gap8": np.uint8, "gap16": np.uint16}.get(way)
    if dtype is not None and words.dtype != dtype:
        raise ValueError(f"positions coded as {way!r} must be {dtype.__name__}, got {words.dtype}")
    if way == "mask":
        if len(words) != -(-size // 8):
            raise ValueError(f"a mask of {size} weights has other than {len(words)} bytes")
        positions = np.flatnonzero(np.unpackbits(words, count=size))
    elif dtype is not None:
        full = np.iinfo(words.dtype).max
        passed = np.cumsum(words, dtype=np.int64)
        ends = np.flatnonzero(words != full)
        positions = passed[ends] + np.arange(len(ends))
    else:
        raise ValueError(f"unknown coding {way!r} of positions")
    if len(positions) and positions[-1] >= size:
        raise ValueError(f"a position lies beyond the {size} weights")
    return positions


def lower_bound(changed: int, size: int) -> float:
    """Bytes that the positions of ``changed`` among ``size`` weights need at least.

    The binary logarithm of the number of choices, that is of the binomial coefficient.
    """
    nats = math.lgamma(size + 1) - math.lgamma(changed + 1) - math.lgamma(size - changed + 1)
    return nats / math.log(2) / 8
