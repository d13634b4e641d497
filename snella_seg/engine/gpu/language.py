"""What the Triton kernels are made of: K of a tile and its factor, where things lie, and sums.

A launch serves all matrices of a group (:mod:`snella_seg.engine.gpu.group`), which have one shape;
the third axis of its grid counts them. No sum depends on the order in which programs run: only
integers are added atomically. Forward and backward get the same bits of K (fused multiply-adds are
written out, and the compiler may add none), so the same weights take part.
"""

from types import SimpleNamespace
from typing import Any

triton: Any
tl: Any
try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

NEEDED = ("fma", "sqrt_rn", "div_rn", "histogram", "cumsum", "trans", "dot")
if not all(hasattr(tl, name) for name in NEEDED):  # none, or Triton before 3.0
    triton, tl = None, SimpleNamespace(constexpr=None)


def jit(function):
    return triton.jit(function, do_not_specialize=["rank", "step"]) if triton else function


@jit
def matrix_tile(outs, ins, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr):
    """The matrix of this program, rows and columns of its tile, all in 64 bits, and which of the
    tile's places exist."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    cols = tl.program_id(1).to(tl.int64) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    inside = (rows < outs)[:, None] & (cols < ins)[None, :]
    return tl.program_id(2).to(tl.int64), rows, cols, inside


@jit
def tables_of(tables_ptr, matrix, outs, ins, HEADS: tl.constexpr, COLUMNS: tl.constexpr):
    """Where P and Q of a matrix lie, (heads, columns, features) each."""
    p_ptr = tables_ptr + matrix * (ins + outs) * (HEADS * COLUMNS)
    return p_ptr, p_ptr + ins * (HEADS * COLUMNS)


@jit
def inverse_place(outs, ins, KIND: tl.constexpr):
    """Where the inverse unit lies in a state: behind the threshold and the statistics."""
    place = 1
    if KIND == "mixed":
        place += 2 * ins
    if KIND == "centred":
        place += ins + outs
    return place


@jit
def distances_of(p_ptr, q_ptr, rows, cols, outs, ins, scale, pair,
                 HEADS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """D of a tile, and the distances of two heads; COLUMNS is a multiple of 4."""
    total = tl.zeros([rows.shape[0], cols.shape[0]], tl.float32)
    first = total
    second = total
    for head in tl.static_range(HEADS):
        squares = tl.zeros([rows.shape[0], cols.shape[0]], tl.float32)
        for start in range(0, COLUMNS, 4):
            for step in tl.static_range(4):
                column = head * COLUMNS + start + step
                p = tl.load(p_ptr + column * ins + cols, mask=cols < ins, other=0.0)
                q = tl.load(q_ptr + column * outs + rows, mask=rows < outs, other=0.0)
                difference = p[None, :] - q[:, None]
                squares = tl.fma(difference, difference, squares)
        distance = tl.sqrt_rn(squares)
        if head % 2 == 0:
            first = tl.where(2 * pair == head, distance, first)
        else:
            second = tl.where(2 * pair + 1 == head, distance, second)
        total = tl.fma(distance, scale * (1 - 2 * (head % 2)), total)
    return total, first, second


@jit
def less_means(values, means_ptr, rows, cols, outs, ins):
    """A tile less a number of each input and one of each output, which follow them."""
    values -= tl.load(means_ptr + cols, mask=cols < ins, other=0.0)[None, :]
    return values - tl.load(means_ptr + ins + rows, mask=rows < outs, other=0.0)[:, None]


@jit
def mix(distances, scalars_ptr, stats_ptr, rows, cols, outs, ins, KIND: tl.constexpr):
    """K of a tile from its D; the softmax S; D/gamma less its maximum in the column."""
    dense = distances
    soft = distances
    drop = distances
    if KIND == "mixed":
        peak = tl.load(stats_ptr + cols, mask=cols < ins, other=0.0)
        total = tl.load(stats_ptr + ins + cols, mask=cols < ins, other=1.0)
        drop = tl.div_rn(distances, tl.load(scalars_ptr + 1)) - peak[None, :]
        soft = tl.div_rn(tl.exp(drop), tl.broadcast_to(total[None, :], drop.shape))
        dense = distances + tl.load(scalars_ptr) * soft + tl.load(scalars_ptr + 2)
    if KIND == "centred":
        dense = less_means(distances, stats_ptr, rows, cols, outs, ins)
    return dense, soft, drop


@jit
def factor_of(dense, threshold, inverse, MODE: tl.constexpr, RELATIVE: tl.constexpr):
    """What K is multiplied with, divided by the root mean square of K where it is relative."""
    magnitude = tl.abs(dense)
    if MODE == "soft":
        factor = tl.maximum(magnitude - threshold, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif MODE == "hard":
        factor = tl.where(magnitude > threshold, 1.0, 0.0)
    else:
        factor = magnitude * tl.where(magnitude > threshold, 1.0, 0.0)  # NaN stays NaN
    if RELATIVE:
        factor *= inverse
    return factor


@jit
def store_rows(partial_ptr, values, rows, outs):
    """Sums over this tile's inputs, in the place of the tile's column."""
    place = partial_ptr + tl.program_id(1).to(tl.int64) * outs + rows
    tl.store(place, tl.sum(values, 1), mask=rows < outs)


@jit
def store_columns(partial_ptr, values, cols, ins):
    """Sums over this tile's outputs, in the place of the tile's row."""
    place = partial_ptr + tl.program_id(0).to(tl.int64) * ins + cols
    tl.store(place, tl.sum(values, 0), mask=cols < ins)


@jit
def store_centring(partial_ptr, values, rows, cols, outs, ins):
    """A tile's sums over outputs, over inputs and over both, for :func:`means_kernel`."""
    store_columns(partial_ptr, values, cols, ins)
    by_row = partial_ptr + tl.num_programs(0).to(tl.int64) * ins
    store_rows(by_row, values, rows, outs)
    whole = by_row + tl.num_programs(1).to(tl.int64) * outs
    whole += tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(whole, tl.sum(tl.sum(values, 1), 0))


@jit
def sum_of(values_ptr, count, BLOCK: tl.constexpr):
    """The sum of ``count`` numbers that lie side by side."""
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, BLOCK):
        place = start + tl.arange(0, BLOCK)
        total += tl.load(values_ptr + place, mask=place < count, other=0.0)
    return tl.sum(total, 0)


@jit
def store_sum(out_ptr, base_ptr, delta, rows, cols, inside, out_stride, base_stride,
              BASE: tl.constexpr):  # fmt: skip
    """A tile of ``base + delta``."""
    if BASE:
        places = base_ptr + rows[:, None] * base_stride + cols[None, :]
        delta += tl.load(places, mask=inside, other=0.0).to(tl.float32)
    places = out_ptr + rows[:, None] * out_stride + cols[None, :]
    tl.store(places, delta.to(out_ptr.dtype.element_ty), mask=inside)


@jit
def prepare_kernel(p_ptr, q_ptr, alpha_ptr, gamma_ptr, beta_ptr, tables_ptr, numbers_ptr,
                   search_ptr, outs, ins, rank, step, fraction, HEADS: tl.constexpr,
                   COLUMNS: tl.constexpr, RANK: tl.constexpr, WIDTH: tl.constexpr,
                   KIND: tl.constexpr, SEARCH: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Of one matrix: tables of P and Q in single precision, its scalars, and for a threshold no
    counts yet, the ranks of the two order statistics that it lies between, and where."""
    features = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    head = tl.program_id(1)
    columns = tl.arange(0, WIDTH)
    for side in tl.static_range(2):
        if side == 0:
            factor_ptr, table_ptr, size = p_ptr, tables_ptr, ins
        else:
            factor_ptr, table_ptr, size = q_ptr, tables_ptr + ins * (HEADS * COLUMNS), outs
        exists = (features < size)[:, None]
        places = factor_ptr + (head * size + features)[:, None] * RANK + columns[None, :]
        values = tl.load(places, mask=exists & (columns < RANK)[None, :], other=0.0)
        places = table_ptr + (head * COLUMNS + columns)[None, :] * size + features[:, None]
        tl.store(places, values.to(tl.float32), mask=exists & (columns < COLUMNS)[None, :])
    if tl.program_id(0) + head == 0:
        if KIND == "mixed":
            tl.store(numbers_ptr, tl.load(alpha_ptr).to(tl.float32))
            tl.store(numbers_ptr + 1, tl.load(gamma_ptr).to(tl.float32))
            tl.store(numbers_ptr + 2, tl.load(beta_ptr).to(tl.float32))
        if SEARCH:
            tl.store(numbers_ptr + 3, fraction)
            tl.store(search_ptr + tl.arange(0, 1024), tl.zeros([1024], tl.int64))
            tl.store(search_ptr + 1024, rank)
            tl.store(search_ptr + 1025, step)
            tl.store(search_ptr + 1026, 0x7FFFFFFF)
            tl.store(search_ptr + 1027, 0x7FFFFFFF)


@jit
def means_kernel(partial_ptr, means_ptr, outs, ins, tiles_out, tiles_in, partial_size, means_size,
                 BLOCK: tl.constexpr):  # fmt: skip
    """Means over outputs, (in,), then those over inputs less the mean of all, (out,)."""
    matrix = tl.program_id(2).to(tl.int64)
    partial_ptr += matrix * partial_size
    means_ptr += matrix * means_size
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    if tl.program_id(1) == 0:
        for tile in range(tiles_out):
            places = partial_ptr + tl.cast(tile, tl.int64) * ins + place
            total += tl.load(places, mask=place < ins, other=0.0)
        tl.store(means_ptr + place, total / outs, mask=place < ins)
    else:
        by_row = partial_ptr + tl.cast(tiles_out, tl.int64) * ins
        for tile in range(tiles_in):
            places = by_row + tl.cast(tile, tl.int64) * outs + place
            total += tl.load(places, mask=place < outs, other=0.0)
        whole = by_row + tl.cast(tiles_in, tl.int64) * outs
        mean = sum_of(whole, tiles_out * tiles_in, 1024) / outs / ins
        tl.store(means_ptr + ins + place, total / ins - mean, mask=place < outs)
