"""Triton kernels of :mod:`snella_seg.engine.triton_delta`.

Everything is made tile by tile from the factors. No sum depends on the order in which programs
run: only integers are added atomically. Forward and backward get the same bits of K (fused
multiply-adds are written out, and the compiler may add none), so the same weights take part.
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

NEEDED = ("fma", "sqrt_rn", "div_rn", "histogram", "cumsum", "trans")
if not all(hasattr(tl, name) for name in NEEDED):  # none, or Triton before 3.0
    triton, tl = None, SimpleNamespace(constexpr=None)


def _jit(function):
    return triton.jit(function, do_not_specialize=["rank", "step"]) if triton else function


@_jit
def _distances(p_ptr, q_ptr, rows, cols, outs, ins, scale, own_head,
               HEADS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """D of a tile and the distance of one head; COLUMNS is a multiple of 4."""
    total = tl.zeros([rows.shape[0], cols.shape[0]], tl.float32)
    own = total
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
        own = tl.where(own_head == head, distance, own)
        total = tl.fma(distance, scale * (1 - 2 * (head % 2)), total)
    return total, own


@_jit
def _mix(distances, scalars_ptr, stats_ptr, rows, cols, outs, ins, KIND: tl.constexpr):
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
        dense = _less_means(distances, stats_ptr, rows, cols, outs, ins)
    return dense, soft, drop


@_jit
def _less_means(values, means_ptr, rows, cols, outs, ins):
    """A tile less a number of each input and one of each output, which follow them."""
    values -= tl.load(means_ptr + cols, mask=cols < ins, other=0.0)[None, :]
    return values - tl.load(means_ptr + ins + rows, mask=rows < outs, other=0.0)[:, None]


@_jit
def _factor(dense, threshold, inverse_ptr, MODE: tl.constexpr, RELATIVE: tl.constexpr):
    """What K is multiplied with, divided by the root mean square of K where it is relative."""
    magnitude = tl.abs(dense)
    if MODE == "soft":
        factor = tl.maximum(magnitude - threshold, 0.0)
    elif MODE == "hard":
        factor = tl.where(magnitude > threshold, 1.0, 0.0)
    else:
        factor = magnitude * tl.where(magnitude > threshold, 1.0, 0.0)  # NaN stays NaN
    if RELATIVE:
        factor *= tl.load(inverse_ptr)
    return factor


@_jit
def _store_rows(partial_ptr, values, rows, outs):
    """Sums over this tile's inputs, in the place of the tile's column."""
    place = partial_ptr + tl.program_id(1).to(tl.int64) * outs + rows
    tl.store(place, tl.sum(values, 1), mask=rows < outs)


@_jit
def _store_columns(partial_ptr, values, cols, ins):
    """Sums over this tile's outputs, in the place of the tile's row."""
    place = partial_ptr + tl.program_id(0).to(tl.int64) * ins + cols
    tl.store(place, tl.sum(values, 0), mask=cols < ins)


@_jit
def _store_sum(out_ptr, base_ptr, delta, rows, cols, inside, out_stride, base_stride,
               BASE: tl.constexpr):  # fmt: skip
    if BASE:
        places = base_ptr + rows[:, None] * base_stride + cols[None, :]
        delta += tl.load(places, mask=inside, other=0.0).to(tl.float32)
    places = out_ptr + rows[:, None] * out_stride + cols[None, :]
    tl.store(places, delta.to(out_ptr.dtype.element_ty), mask=inside)


@_jit
def _tile(outs, ins, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr):
    """Rows and columns of this program's tile, in 64 bits, and which of its places exist."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    cols = tl.program_id(1).to(tl.int64) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    return rows, cols, (rows < outs)[:, None] & (cols < ins)[None, :]


@_jit
def distances_kernel(p_ptr, q_ptr, scalars_ptr, dense_ptr, partial_ptr, outs, ins, dense_stride,
                     scale, HEADS: tl.constexpr, COLUMNS: tl.constexpr, KIND: tl.constexpr,
                     BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr):  # fmt: skip
    """D; and per tile and input, over its rows, the sum of D where that is to be centred, and for
    a softmax the maximum z and the sum of exp(D/gamma - z)."""
    rows, cols, inside = _tile(outs, ins, BLOCK_OUT, BLOCK_IN)
    distances, _ = _distances(p_ptr, q_ptr, rows, cols, outs, ins, scale, 0, HEADS, COLUMNS)
    tl.store(dense_ptr + rows[:, None] * dense_stride + cols[None, :], distances, mask=inside)
    if KIND == "centred":
        _store_columns(partial_ptr, tl.where(inside, distances, 0.0), cols, ins)
    if KIND == "mixed":
        scaled = tl.div_rn(distances, tl.load(scalars_ptr + 1))
        scaled = tl.where((rows < outs)[:, None], scaled, -float("inf"))
        peak = tl.max(scaled, 0)
        total = tl.sum(tl.exp(scaled - peak[None, :]), 0)
        place = partial_ptr + tl.program_id(0).to(tl.int64) * ins + cols
        tl.store(place, peak, mask=cols < ins)
        place += tl.num_programs(0).to(tl.int64) * ins
        tl.store(place, total, mask=cols < ins)


@_jit
def merge_kernel(partial_ptr, stats_ptr, tiles, ins, BLOCK: tl.constexpr):
    """Maximum and sum of each input over all outputs, from those of the tiles."""
    cols = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    peak = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for tile in range(tiles):
        place = partial_ptr + cols + tile * ins
        next_peak = tl.load(place, mask=cols < ins, other=0.0)
        next_total = tl.load(place + tiles * ins, mask=cols < ins, other=0.0)
        highest = tl.maximum(peak, next_peak)
        total = total * tl.exp(peak - highest) + next_total * tl.exp(next_peak - highest)
        peak = highest
    tl.store(stats_ptr + cols, peak, mask=cols < ins)
    tl.store(stats_ptr + ins + cols, total, mask=cols < ins)


@_jit
def rows_kernel(dense_ptr, means_ptr, partial_ptr, outs, ins, dense_stride,
                BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr):  # fmt: skip
    """Per tile and output the sum over its inputs of D less the means over outputs."""
    rows, cols, inside = _tile(outs, ins, BLOCK_OUT, BLOCK_IN)
    places = dense_ptr + rows[:, None] * dense_stride + cols[None, :]
    distances = tl.load(places, mask=inside, other=0.0)
    distances -= tl.load(means_ptr + cols, mask=cols < ins, other=0.0)[None, :]
    _store_rows(partial_ptr, tl.where(inside, distances, 0.0), rows, outs)


@_jit
def _bits(dense):
    """|K| as integers of the same order; NaN comes last, as in a sort."""
    return dense.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@_jit
def _add_counts(counts_ptr, bits, take, DIGIT: tl.constexpr):
    """Count the taken elements by their DIGIT-th byte, the highest first."""
    byte = (bits >> (24 - 8 * DIGIT)) & 255
    counts = tl.histogram(tl.reshape(tl.where(take, byte, 0), [bits.shape[0] * bits.shape[1]]), 256)
    bins = tl.arange(0, 256)
    left = bits.shape[0] * bits.shape[1] - tl.sum(tl.sum(take.to(tl.int32), 1), 0)
    counts -= tl.where(bins == 0, left, 0)  # those not taken were counted as 0
    tl.atomic_add(counts_ptr + DIGIT * 256 + bins, counts.to(tl.int64), mask=counts > 0)


@_jit
def _narrow(counts_ptr, rank, DIGITS: tl.constexpr):
    """The first bytes of the element of this rank, its rank among those that share them, and how
    many they are."""
    bins = tl.arange(0, 256)
    prefix = tl.sum(tl.zeros([256], tl.int32), 0)
    rank = tl.sum(tl.where(bins == 0, rank, 0).to(tl.int64), 0)
    sharing = rank
    for digit in tl.static_range(DIGITS):
        counts = tl.load(counts_ptr + digit * 256 + bins)
        byte = tl.sum((tl.cumsum(counts, 0) <= rank).to(tl.int32), 0)
        rank -= tl.sum(tl.where(bins < byte, counts, 0), 0)
        sharing = tl.sum(tl.where(bins == byte, counts, 0), 0)
        prefix = prefix * 256 + byte
    return prefix, rank, sharing


@_jit
def finish_kernel(dense_ptr, scalars_ptr, stats_ptr, counts_ptr, squares_ptr, outs, ins,
                  dense_stride, KIND: tl.constexpr, RELATIVE: tl.constexpr,
                  BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr):  # fmt: skip
    """K in the place of D, the counts of the first byte of |K|, and a sum of squares per tile."""
    rows, cols, inside = _tile(outs, ins, BLOCK_OUT, BLOCK_IN)
    places = dense_ptr + rows[:, None] * dense_stride + cols[None, :]
    distances = tl.load(places, mask=inside, other=0.0)
    dense, _, _ = _mix(distances, scalars_ptr, stats_ptr, rows, cols, outs, ins, KIND)
    if KIND != "distance":
        tl.store(places, dense, mask=inside)
    if RELATIVE:
        squares = tl.where(inside, dense * dense, 0.0)
        tile = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
        tl.store(squares_ptr + tile, tl.sum(tl.sum(squares, 1), 0))
    _add_counts(counts_ptr, _bits(dense), inside, 0)


@_jit
def count_kernel(dense_ptr, counts_ptr, outs, ins, dense_stride, rank, DIGIT: tl.constexpr,
                  BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr):  # fmt: skip
    """Counts of the next byte among the elements that share the bytes before."""
    rows, cols, inside = _tile(outs, ins, BLOCK_OUT, BLOCK_IN)
    places = dense_ptr + rows[:, None] * dense_stride + cols[None, :]
    bits = _bits(tl.load(places, mask=inside, other=0.0))
    prefix, _, _ = _narrow(counts_ptr, rank, DIGIT)
    _add_counts(counts_ptr, bits, inside & ((bits >> (32 - 8 * DIGIT)) == prefix), DIGIT)


@_jit
def neighbours_kernel(dense_ptr, counts_ptr, pair_ptr, outs, ins, dense_stride, rank, step,
                       BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr):  # fmt: skip
    """The order statistics ``rank`` and ``rank + step``, step being 0 or 1."""
    low, rest, sharing = _narrow(counts_ptr, rank, 4)
    high = low
    if rest + step >= sharing:
        rows, cols, inside = _tile(outs, ins, BLOCK_OUT, BLOCK_IN)
        places = dense_ptr + rows[:, None] * dense_stride + cols[None, :]
        bits = _bits(tl.load(places, mask=inside, other=0.0))
        larger = tl.where(inside & (bits > low), bits, 0x7FFFFFFF)
        high = tl.min(tl.min(larger, 1), 0)
    tl.atomic_min(pair_ptr, low)
    tl.atomic_min(pair_ptr + 1, high)


@_jit
def write_kernel(dense_ptr, threshold_ptr, inverse_ptr, base_ptr, out_ptr, outs, ins, dense_stride,
                  base_stride, out_stride, amount, BASE: tl.constexpr, MODE: tl.constexpr,
                  RELATIVE: tl.constexpr, BLOCK_OUT: tl.constexpr,
                  BLOCK_IN: tl.constexpr):  # fmt: skip
    """``base + amount * K * factor``; the output may lie where K or the base lies."""
    rows, cols, inside = _tile(outs, ins, BLOCK_OUT, BLOCK_IN)
    places = dense_ptr + rows[:, None] * dense_stride + cols[None, :]
    dense = tl.load(places, mask=inside, other=0.0)
    factor = _factor(dense, tl.load(threshold_ptr), inverse_ptr, MODE, RELATIVE)
    delta = dense * factor * amount
    _store_sum(out_ptr, base_ptr, delta, rows, cols, inside, out_stride, base_stride, BASE)


@_jit
def sums_kernel(p_ptr, q_ptr, scalars_ptr, stats_ptr, threshold_ptr, inverse_ptr, grad_ptr,
                 base_ptr, out_ptr, partial_ptr, partial_rows_ptr, outs, ins, grad_stride,
                 base_stride, out_stride, scale, amount, HEADS: tl.constexpr,
                 COLUMNS: tl.constexpr, KIND: tl.constexpr, MODE: tl.constexpr,
                 RELATIVE: tl.constexpr, BASE: tl.constexpr, WRITE: tl.constexpr,
                 BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr):  # fmt: skip
    """``base + amount * delta`` if wanted; and per tile, where K is centred, the sums of gK over
    its rows and over its columns; for a softmax the sums over its rows of gK*S, gK*S*w, S*w and
    gK, with w = D/gamma less its maximum."""
    rows, cols, inside = _tile(outs, ins, BLOCK_OUT, BLOCK_IN)
    distances, _ = _distances(p_ptr, q_ptr, rows, cols, outs, ins, scale, 0, HEADS, COLUMNS)
    dense, soft, drop = _mix(distances, scalars_ptr, stats_ptr, rows, cols, outs, ins, KIND)
    factor = _factor(dense, tl.load(threshold_ptr), inverse_ptr, MODE, RELATIVE)
    if WRITE:
        delta = dense * factor * amount
        _store_sum(out_ptr, base_ptr, delta, rows, cols, inside, out_stride, base_stride, BASE)
    if KIND != "distance":
        places = grad_ptr + rows[:, None] * grad_stride + cols[None, :]
        grad = tl.load(places, mask=inside, other=0.0).to(tl.float32)
        grad = tl.where(inside, grad * factor, 0.0)
        if KIND == "centred":
            _store_columns(partial_ptr, grad, cols, ins)
            _store_rows(partial_rows_ptr, grad, rows, outs)
        else:
            soft = tl.where(inside, soft, 0.0)
            drop = tl.where(inside, drop, 0.0)
            each = tl.num_programs(0).to(tl.int64) * ins
            _store_columns(partial_ptr, grad * soft, cols, ins)
            _store_columns(partial_ptr + each, grad * soft * drop, cols, ins)
            _store_columns(partial_ptr + 2 * each, soft * drop, cols, ins)
            _store_columns(partial_ptr + 3 * each, grad, cols, ins)


@_jit
def factor_grad_kernel(p_ptr, q_ptr, scalars_ptr, stats_ptr, means_ptr, threshold_ptr,
                        inverse_ptr, grad_ptr, parts_ptr, outs, ins, grad_stride, chunk, scale,
                        HEADS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr,
                        KIND: tl.constexpr, MODE: tl.constexpr, RELATIVE: tl.constexpr,
                        OF_INPUTS: tl.constexpr, BLOCK_OWN: tl.constexpr,
                        BLOCK_OTHER: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):  # fmt: skip
    """Gradient of P or of Q from one chunk of the other side, for some columns of one head:
    ``sum over the other side of c_h * gD / D_h * (own - other)``."""
    column_blocks = (RANK + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
    head = tl.program_id(2) // column_blocks
    columns = (tl.program_id(2) % column_blocks) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    own = tl.program_id(0).to(tl.int64) * BLOCK_OWN + tl.arange(0, BLOCK_OWN)
    if OF_INPUTS:
        own_ptr, other_ptr, own_size, other_size = p_ptr, q_ptr, ins, outs
    else:
        own_ptr, other_ptr, own_size, other_size = q_ptr, p_ptr, outs, ins
    table_rows = head * COLUMNS + columns
    is_own = (own < own_size)[:, None] & (columns < RANK)[None, :]
    own_places = own_ptr + table_rows[None, :] * own_size + own[:, None]
    mine = tl.load(own_places, mask=is_own, other=0.0)
    total = tl.zeros([BLOCK_OWN, BLOCK_COLUMNS], tl.float32)
    weight = scale * (1 - 2 * (head % 2))
    threshold = tl.load(threshold_ptr)
    begin = tl.program_id(1).to(tl.int64) * chunk
    for start in range(begin, tl.minimum(begin + chunk, other_size), BLOCK_OTHER):
        other = start + tl.arange(0, BLOCK_OTHER)
        if OF_INPUTS:
            rows, cols = other, own
        else:
            rows, cols = own, other
        inside = (rows < outs)[:, None] & (cols < ins)[None, :]
        distances, distance = _distances(
            p_ptr, q_ptr, rows, cols, outs, ins, scale, head, HEADS, COLUMNS
        )
        dense, soft, _ = _mix(distances, scalars_ptr, stats_ptr, rows, cols, outs, ins, KIND)
        places = grad_ptr + rows[:, None] * grad_stride + cols[None, :]
        grad = tl.load(places, mask=inside, other=0.0).to(tl.float32)
        grad *= _factor(dense, threshold, inverse_ptr, MODE, RELATIVE)
        if KIND == "centred":
            grad = _less_means(grad, means_ptr, rows, cols, outs, ins)
        if KIND == "mixed":
            mean = tl.load(means_ptr + cols, mask=cols < ins, other=0.0)
            slope = tl.load(scalars_ptr) / tl.load(scalars_ptr + 1)
            grad += slope * soft * (grad - mean[None, :])
        ratio = tl.where(inside & (distance > 0), weight * grad / distance, 0.0)
        if not OF_INPUTS:
            ratio = tl.trans(ratio)
        is_other = (other < other_size)[:, None] & (columns < RANK)[None, :]
        other_places = other_ptr + table_rows[None, :] * other_size + other[:, None]
        theirs = tl.load(other_places, mask=is_other, other=0.0)
        total += tl.sum(ratio[:, :, None] * (mine[None, :, :] - theirs[:, None, :]), 0)
    part = (tl.program_id(1).to(tl.int64) * HEADS + head) * own_size + own
    tl.store(parts_ptr + part[:, None] * RANK + columns[None, :], total, mask=is_own)
