"""Triton kernels that make deltas: distances, their means or softmax, a threshold, a sum."""

from .language import (
    distances_of,
    factor_of,
    inverse_place,
    jit,
    matrix_tile,
    mix,
    store_centring,
    store_sum,
    sum_of,
    tables_of,
    tl,
)


@jit
def distances_kernel(tables_ptr, numbers_ptr, dense_ptr, partial_ptr, outs, ins, dense_matrix,
                     dense_stride, partial_size, scale, HEADS: tl.constexpr,
                     COLUMNS: tl.constexpr, KIND: tl.constexpr, BLOCK_OUT: tl.constexpr,
                     BLOCK_IN: tl.constexpr):  # fmt: skip
    """D; and per tile, where that is to be centred, its sums, and for a softmax the maximum z of
    each input over the tile's rows and the sum of exp(D/gamma - z)."""
    matrix, rows, cols, inside = matrix_tile(outs, ins, BLOCK_OUT, BLOCK_IN)
    p_ptr, q_ptr = tables_of(tables_ptr, matrix, outs, ins, HEADS, COLUMNS)
    distances, _, _ = distances_of(p_ptr, q_ptr, rows, cols, outs, ins, scale, 0, HEADS, COLUMNS)
    places = dense_ptr + matrix * dense_matrix + rows[:, None] * dense_stride + cols[None, :]
    tl.store(places, distances, mask=inside)
    partial_ptr += matrix * partial_size
    if KIND == "centred":
        distances = tl.where(inside, distances, 0.0)
        store_centring(partial_ptr, distances, rows, cols, outs, ins)
    if KIND == "mixed":
        scaled = tl.div_rn(distances, tl.load(numbers_ptr + 4 * matrix + 1))
        scaled = tl.where((rows < outs)[:, None], scaled, -float("inf"))
        peak = tl.max(scaled, 0)
        total = tl.sum(tl.exp(scaled - peak[None, :]), 0)
        place = partial_ptr + tl.program_id(0).to(tl.int64) * ins + cols
        tl.store(place, peak, mask=cols < ins)
        place += tl.num_programs(0).to(tl.int64) * ins
        tl.store(place, total, mask=cols < ins)


@jit
def softmax_kernel(partial_ptr, stats_ptr, tiles, ins, partial_size, stats_size,
                   BLOCK: tl.constexpr):  # fmt: skip
    """Maximum and sum of each input over all outputs, from those of the tiles."""
    partial_ptr += tl.program_id(2).to(tl.int64) * partial_size
    stats_ptr += tl.program_id(2).to(tl.int64) * stats_size
    cols = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    peak = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for tile in range(tiles):
        place = partial_ptr + cols + tl.cast(tile, tl.int64) * ins
        next_peak = tl.load(place, mask=cols < ins, other=0.0)
        place += tl.cast(tiles, tl.int64) * ins
        next_total = tl.load(place, mask=cols < ins, other=0.0)
        highest = tl.maximum(peak, next_peak)
        total = total * tl.exp(peak - highest) + next_total * tl.exp(next_peak - highest)
        peak = highest
    tl.store(stats_ptr + cols, peak, mask=cols < ins)
    tl.store(stats_ptr + ins + cols, total, mask=cols < ins)


@jit
def _bits(dense):
    """|K| as integers of the same order; NaN comes last, as in a sort."""
    return dense.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@jit
def _add_counts(counts_ptr, bits, take, DIGIT: tl.constexpr):
    """Count the taken elements by their DIGIT-th byte, the highest first."""
    byte = (bits >> (24 - 8 * DIGIT)) & 255
    counts = tl.histogram(tl.reshape(tl.where(take, byte, 0), [bits.shape[0] * bits.shape[1]]), 256)
    bins = tl.arange(0, 256)
    left = bits.shape[0] * bits.shape[1] - tl.sum(tl.sum(take.to(tl.int32), 1), 0)
    counts -= tl.where(bins == 0, left, 0)  # those not taken were counted as 0
    tl.atomic_add(counts_ptr + DIGIT * 256 + bins, counts.to(tl.int64), mask=counts > 0)


@jit
def _narrow(search_ptr, DIGITS: tl.constexpr):
    """The first bytes of the element of the rank that is searched, its rank among those that
    share them, and how many they are."""
    bins = tl.arange(0, 256)
    prefix = tl.sum(tl.zeros([256], tl.int32), 0)
    rank = tl.load(search_ptr + 1024)
    sharing = rank
    for digit in tl.static_range(DIGITS):
        counts = tl.load(search_ptr + digit * 256 + bins)
        byte = tl.sum((tl.cumsum(counts, 0) <= rank).to(tl.int32), 0)
        rank -= tl.sum(tl.where(bins < byte, counts, 0), 0)
        sharing = tl.sum(tl.where(bins == byte, counts, 0), 0)
        prefix = prefix * 256 + byte
    return prefix, rank, sharing


@jit
def finish_kernel(dense_ptr, numbers_ptr, state_ptr, search_ptr, squares_ptr, outs, ins,
                  dense_matrix, dense_stride, state_size, KIND: tl.constexpr,
                  RELATIVE: tl.constexpr, BLOCK_OUT: tl.constexpr,
                  BLOCK_IN: tl.constexpr):  # fmt: skip
    """K in the place of D, the counts of the first byte of |K|, and a sum of squares per tile."""
    matrix, rows, cols, inside = matrix_tile(outs, ins, BLOCK_OUT, BLOCK_IN)
    places = dense_ptr + matrix * dense_matrix + rows[:, None] * dense_stride + cols[None, :]
    distances = tl.load(places, mask=inside, other=0.0)
    stats_ptr = state_ptr + matrix * state_size + 1
    dense, _, _ = mix(distances, numbers_ptr + 4 * matrix, stats_ptr, rows, cols, outs, ins, KIND)
    if KIND != "distance":
        tl.store(places, dense, mask=inside)
    if RELATIVE:
        squares = tl.where(inside, dense * dense, 0.0)
        tile = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
        tile += matrix * tl.num_programs(0) * tl.num_programs(1)
        tl.store(squares_ptr + tile, tl.sum(tl.sum(squares, 1), 0))
    _add_counts(search_ptr + 1028 * matrix, _bits(dense), inside, 0)


@jit
def count_kernel(dense_ptr, search_ptr, squares_ptr, state_ptr, outs, ins, dense_matrix,
                 dense_stride, state_size, DIGIT: tl.constexpr, KIND: tl.constexpr,
                 RELATIVE: tl.constexpr, BLOCK_OUT: tl.constexpr,
                 BLOCK_IN: tl.constexpr):  # fmt: skip
    """Counts of the next byte among the elements that share the bytes before; the first time also
    the inverse of the root mean square of K, into the state."""
    matrix, rows, cols, inside = matrix_tile(outs, ins, BLOCK_OUT, BLOCK_IN)
    places = dense_ptr + matrix * dense_matrix + rows[:, None] * dense_stride + cols[None, :]
    bits = _bits(tl.load(places, mask=inside, other=0.0))
    search_ptr += 1028 * matrix
    prefix, _, _ = _narrow(search_ptr, DIGIT)
    _add_counts(search_ptr, bits, inside & ((bits >> (32 - 8 * DIGIT)) == prefix), DIGIT)
    if RELATIVE and DIGIT == 1:
        if tl.program_id(0) + tl.program_id(1) == 0:
            tiles = tl.num_programs(0) * tl.num_programs(1)
            mean = sum_of(squares_ptr + matrix * tiles, tiles, 1024) / outs / ins
            unit = tl.maximum(tl.sqrt_rn(mean), 1.1754943508222875e-38)
            place = state_ptr + matrix * state_size + inverse_place(outs, ins, KIND)
            tl.store(place, tl.div_rn(1.0, unit))


@jit
def neighbours_kernel(dense_ptr, search_ptr, outs, ins, dense_matrix, dense_stride,
                      BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr):  # fmt: skip
    """The order statistics ``rank`` and ``rank + step``, step being 0 or 1."""
    matrix, rows, cols, inside = matrix_tile(outs, ins, BLOCK_OUT, BLOCK_IN)
    search_ptr += 1028 * matrix
    low, rest, sharing = _narrow(search_ptr, 4)
    high = low
    if rest + tl.load(search_ptr + 1025) >= sharing:
        places = dense_ptr + matrix * dense_matrix + rows[:, None] * dense_stride + cols[None, :]
        bits = _bits(tl.load(places, mask=inside, other=0.0))
        larger = tl.where(inside & (bits > low), bits, 0x7FFFFFFF)
        high = tl.min(tl.min(larger, 1), 0)
    tl.atomic_min(search_ptr + 1026, low.to(tl.int64))
    tl.atomic_min(search_ptr + 1027, high.to(tl.int64))


@jit
def _threshold(search_ptr, fraction):
    """Between the two order statistics; equal ends are the result, infinite ones too."""
    low = tl.load(search_ptr + 1026).to(tl.int32).to(tl.float32, bitcast=True)
    high = tl.load(search_ptr + 1027).to(tl.int32).to(tl.float32, bitcast=True)
    near_low = tl.fma(fraction, high - low, low)
    near_high = tl.fma(fraction - 1.0, high - low, high)
    between = tl.where(fraction < 0.5, near_low, near_high)
    return tl.where(low == high, low, between)


@jit
def write_kernel(dense_ptr, numbers_ptr, search_ptr, state_ptr, base_ptr, out_ptr,
                 outs, ins, dense_matrix, dense_stride, base_matrix, base_stride, out_matrix,
                 out_stride, state_size, amount, BASE: tl.constexpr, KIND: tl.constexpr,
                 MODE: tl.constexpr, RELATIVE: tl.constexpr, BLOCK_OUT: tl.constexpr,
                 BLOCK_IN: tl.constexpr):  # fmt: skip
    """``base + amount * K * factor``, the output may lie where K or the base lies; the threshold
    goes into the state."""
    matrix, rows, cols, inside = matrix_tile(outs, ins, BLOCK_OUT, BLOCK_IN)
    places = dense_ptr + matrix * dense_matrix + rows[:, None] * dense_stride + cols[None, :]
    dense = tl.load(places, mask=inside, other=0.0)
    state_ptr += matrix * state_size
    threshold = _threshold(search_ptr + 1028 * matrix, tl.load(numbers_ptr + 4 * matrix + 3))
    inverse = 1.0
    if RELATIVE:
        inverse = tl.load(state_ptr + inverse_place(outs, ins, KIND))
    if tl.program_id(0) + tl.program_id(1) == 0:
        tl.store(state_ptr, threshold)
    delta = dense * factor_of(dense, threshold, inverse, MODE, RELATIVE) * amount
    base_ptr += matrix * base_matrix
    out_ptr += matrix * out_matrix
    store_sum(out_ptr, base_ptr, delta, rows, cols, inside, out_stride, base_stride, BASE)
