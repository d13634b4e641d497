"""Triton kernels of the gradients by the parameters of deltas, and of the deltas made again."""

from .language import (
    distances_of,
    factor_of,
    inverse_place,
    jit,
    less_means,
    matrix_tile,
    mix,
    store_centring,
    store_columns,
    store_sum,
    sum_of,
    tables_of,
    tl,
)


@jit
def _state_of(state_ptr, outs, ins, KIND: tl.constexpr, RELATIVE: tl.constexpr):
    """Threshold and inverse unit."""
    inverse = 1.0
    if RELATIVE:
        inverse = tl.load(state_ptr + inverse_place(outs, ins, KIND))
    return tl.load(state_ptr), inverse


@jit
def sums_kernel(tables_ptr, numbers_ptr, state_ptr, grad_ptr, base_ptr, out_ptr, partial_ptr, outs,
                ins, grad_matrix, grad_stride, base_matrix, base_stride, out_matrix, out_stride,
                state_size, partial_size, scale, amount, HEADS: tl.constexpr,
                COLUMNS: tl.constexpr, KIND: tl.constexpr, MODE: tl.constexpr,
                RELATIVE: tl.constexpr, BASE: tl.constexpr, WRITE: tl.constexpr,
                BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr):  # fmt: skip
    """``base + amount * delta`` if wanted; and per tile, where K is centred, the sums of gK; for a
    softmax the sums over its rows of gK*S, gK*S*w, S*w and gK, with w = D/gamma less its
    maximum."""
    matrix, rows, cols, inside = matrix_tile(outs, ins, BLOCK_OUT, BLOCK_IN)
    p_ptr, q_ptr = tables_of(tables_ptr, matrix, outs, ins, HEADS, COLUMNS)
    distances, _, _ = distances_of(p_ptr, q_ptr, rows, cols, outs, ins, scale, 0, HEADS, COLUMNS)
    state_ptr += matrix * state_size
    dense, soft, drop = mix(
        distances, numbers_ptr + 4 * matrix, state_ptr + 1, rows, cols, outs, ins, KIND
    )
    threshold, inverse = _state_of(state_ptr, outs, ins, KIND, RELATIVE)
    factor = factor_of(dense, threshold, inverse, MODE, RELATIVE)
    if WRITE:
        delta = dense * factor * amount
        base_ptr += matrix * base_matrix
        out_ptr += matrix * out_matrix
        store_sum(out_ptr, base_ptr, delta, rows, cols, inside, out_stride, base_stride, BASE)
    if KIND != "distance":
        places = grad_ptr + matrix * grad_matrix + rows[:, None] * grad_stride + cols[None, :]
        grad = tl.load(places, mask=inside, other=0.0).to(tl.float32)
        grad = tl.where(inside, grad * factor, 0.0)
        partial_ptr += matrix * partial_size
        if KIND == "centred":
            store_centring(partial_ptr, grad, rows, cols, outs, ins)
        else:
            soft = tl.where(inside, soft, 0.0)
            drop = tl.where(inside, drop, 0.0)
            each = tl.num_programs(0).to(tl.int64) * ins
            store_columns(partial_ptr, grad * soft, cols, ins)
            store_columns(partial_ptr + each, grad * soft * drop, cols, ins)
            store_columns(partial_ptr + 2 * each, soft * drop, cols, ins)
            store_columns(partial_ptr + 3 * each, grad, cols, ins)


@jit
def slopes_kernel(partial_ptr, slopes_ptr, tiles, ins, partial_size, slopes_size,
                  BLOCK: tl.constexpr):  # fmt: skip
    """Of a softmax, for each input: the sum of gK*S over all outputs, and what it adds to the
    gradients by gamma and beta."""
    partial_ptr += tl.program_id(2).to(tl.int64) * partial_size
    slopes_ptr += tl.program_id(2).to(tl.int64) * slopes_size
    cols = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = cols < ins
    each = tl.cast(tiles, tl.int64) * ins
    mean = tl.zeros([BLOCK], tl.float32)
    spread = mean
    drop = mean
    grad = mean
    for tile in range(tiles):
        place = partial_ptr + tl.cast(tile, tl.int64) * ins + cols
        mean += tl.load(place, mask=exists, other=0.0)
        spread += tl.load(place + each, mask=exists, other=0.0)
        drop += tl.load(place + 2 * each, mask=exists, other=0.0)
        grad += tl.load(place + 3 * each, mask=exists, other=0.0)
    tl.store(slopes_ptr + cols, mean, mask=exists)
    tl.store(slopes_ptr + ins + cols, spread - mean * drop, mask=exists)
    tl.store(slopes_ptr + 2 * ins + cols, grad, mask=exists)


@jit
def _one_head(slope, distance, weight, p, q, columns, by_inputs, sums, NEAR: tl.constexpr):
    """Take in what a tile adds to the gradient by P; return that by Q.

    Both are ``own * sum of ratios - ratios times theirs``. For points that nearly coincide this
    would lose digits: they are taken as ``ratio * (own - theirs)``.
    """
    ratio = tl.where(distance > 0, weight * slope / distance, 0.0)
    sizes = tl.sum(p * p, 1)[None, :] + tl.sum(q * q, 1)[:, None]
    near = (distance * distance <= NEAR * sizes) & (ratio != 0)
    far = tl.where(near, 0.0, ratio)
    by_inputs = tl.dot(tl.trans(far), q, by_inputs, input_precision="ieee")
    by_outputs = q * tl.sum(far, 1)[:, None] - tl.dot(far, p, input_precision="ieee")
    if tl.sum(tl.sum(near.to(tl.int32), 1), 0) > 0:
        close = tl.where(near, ratio, 0.0)
        for i in range(columns.shape[0]):
            column = (tl.arange(0, columns.shape[0]) == i)[None, :]
            own, theirs = tl.where(column, p, 0.0), tl.where(column, q, 0.0)
            steps = close * (tl.sum(own, 1)[None, :] - tl.sum(theirs, 1)[:, None])
            by_inputs -= tl.where(column, tl.sum(steps, 0)[:, None], 0.0)
            by_outputs -= tl.where(column, tl.sum(steps, 1)[:, None], 0.0)
    return by_inputs, sums + tl.sum(far, 0), by_outputs


@jit
def factors_kernel(tables_ptr, numbers_ptr, state_ptr, means_ptr, grad_ptr, parts_ptr, outs, ins,
                   grad_matrix, grad_stride, state_size, means_size, parts_size, chunk, tile, scale,
                   HEADS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr,
                   KIND: tl.constexpr, MODE: tl.constexpr, RELATIVE: tl.constexpr,
                   BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
                   BLOCK_COLUMNS: tl.constexpr, NEAR: tl.constexpr):  # fmt: skip
    """Gradients of P from one chunk of outputs, and of Q from one tile of inputs, the tiles counted
    from ``tile`` on, for some columns of two heads: the sums over the other side of
    ``c_h * gD / D_h * (own - other)``."""
    blocks = (RANK + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
    pairs = (HEADS + 1) // 2
    matrix = (tl.program_id(2) // (pairs * blocks)).to(tl.int64)
    pair = (tl.program_id(2) // blocks) % pairs
    columns = (tl.program_id(2) % blocks) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    cols = (tl.program_id(0).to(tl.int64) + tile) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    p_ptr, q_ptr = tables_of(tables_ptr, matrix, outs, ins, HEADS, COLUMNS)
    state_ptr += matrix * state_size
    numbers_ptr += 4 * matrix
    means_ptr += matrix * means_size
    grad_ptr += matrix * grad_matrix
    threshold, inverse = _state_of(state_ptr, outs, ins, KIND, RELATIVE)
    paired = 2 * pair + 1 < HEADS
    here = (columns < RANK)[None, :]
    of_inputs = (cols < ins)[:, None] & here
    of_p = p_ptr + (2 * pair * COLUMNS + columns)[None, :] * ins + cols[:, None]
    p0 = tl.load(of_p, mask=of_inputs, other=0.0)
    by_inputs0 = tl.zeros([BLOCK_IN, BLOCK_COLUMNS], tl.float32)
    sums0 = tl.zeros([BLOCK_IN], tl.float32)
    p1 = p0
    by_inputs1 = by_inputs0
    sums1 = sums0
    if HEADS > 1:
        p1 = tl.load(of_p + COLUMNS * ins, mask=of_inputs & paired, other=0.0)
    parts_ptr += matrix * parts_size
    chunks = tl.num_programs(1).to(tl.int64)
    parts_of_outputs = parts_ptr + chunks * ins * (HEADS * RANK)
    parts_of_outputs += (tl.program_id(0).to(tl.int64) * HEADS + 2 * pair) * outs * RANK
    begin = tl.program_id(1).to(tl.int64) * chunk
    for start in range(begin, tl.minimum(begin + chunk, outs), BLOCK_OUT):
        rows = start + tl.arange(0, BLOCK_OUT)
        inside = (rows < outs)[:, None] & (cols < ins)[None, :]
        distances, first, second = distances_of(
            p_ptr, q_ptr, rows, cols, outs, ins, scale, pair, HEADS, COLUMNS
        )
        dense, soft, _ = mix(distances, numbers_ptr, state_ptr + 1, rows, cols, outs, ins, KIND)
        places = grad_ptr + rows[:, None] * grad_stride + cols[None, :]
        slope = tl.load(places, mask=inside, other=0.0).to(tl.float32)
        slope *= factor_of(dense, threshold, inverse, MODE, RELATIVE)
        if KIND == "centred":
            slope = less_means(slope, means_ptr, rows, cols, outs, ins)
        if KIND == "mixed":
            mean = tl.load(means_ptr + cols, mask=cols < ins, other=0.0)
            amount = tl.load(numbers_ptr) / tl.load(numbers_ptr + 1)
            slope += amount * soft * (slope - mean[None, :])
        slope = tl.where(inside, slope, 0.0)
        of_outputs = (rows < outs)[:, None] & here
        of_q = q_ptr + (2 * pair * COLUMNS + columns)[None, :] * outs + rows[:, None]
        q = tl.load(of_q, mask=of_outputs, other=0.0)
        by_inputs0, sums0, by_outputs = _one_head(
            slope, first, scale, p0, q, columns, by_inputs0, sums0, NEAR
        )
        part = parts_of_outputs + rows[:, None] * RANK + columns[None, :]
        tl.store(part, by_outputs, mask=of_outputs)
        if HEADS > 1:
            q = tl.load(of_q + COLUMNS * outs, mask=of_outputs & paired, other=0.0)
            by_inputs1, sums1, by_outputs = _one_head(
                slope, second, -scale, p1, q, columns, by_inputs1, sums1, NEAR
            )
            part += tl.cast(outs, tl.int64) * RANK
            tl.store(part, by_outputs, mask=of_outputs & paired)
    own = parts_ptr + (tl.program_id(1).to(tl.int64) * HEADS + 2 * pair) * ins * RANK
    own = own + cols[:, None] * RANK + columns[None, :]
    tl.store(own, p0 * sums0[:, None] - by_inputs0, mask=of_inputs)
    if HEADS > 1:
        own += tl.cast(ins, tl.int64) * RANK
        tl.store(own, p1 * sums1[:, None] - by_inputs1, mask=of_inputs & paired)


@jit
def fold_kernel(parts_ptr, slopes_ptr, numbers_ptr, grads_ptr, outs, ins, chunks, tiles, before,
                parts_size, slopes_size, grads_size, WIDTH: tl.constexpr, KIND: tl.constexpr,
                BLOCK: tl.constexpr):  # fmt: skip
    """The gradients by P, by Q and by the scalars, one behind the other, from their parts; that by
    Q goes on from the tiles of inputs before, if any."""
    matrix = tl.program_id(2).to(tl.int64)
    parts_ptr += matrix * parts_size
    grads_ptr += matrix * grads_size
    size_p, size_q = tl.cast(ins, tl.int64) * WIDTH, tl.cast(outs, tl.int64) * WIDTH
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    if tl.program_id(1) == 0:
        own = grads_ptr + size_p + place
        if before > 0:
            total = tl.load(own, mask=place < size_q, other=0.0)
        parts_ptr += chunks * size_p
        for part in range(tiles):
            places = parts_ptr + part * size_q + place
            total += tl.load(places, mask=place < size_q, other=0.0)
        tl.store(own, total, mask=place < size_q)
    else:
        for part in range(chunks):
            places = parts_ptr + part * size_p + place
            total += tl.load(places, mask=place < size_p, other=0.0)
        tl.store(grads_ptr + place, total, mask=place < size_p)
        if KIND == "mixed":
            if tl.program_id(0) == 0:
                slopes_ptr += matrix * slopes_size
                numbers_ptr += 4 * matrix
                grads_ptr += size_p + size_q
                slope = tl.load(numbers_ptr) / tl.load(numbers_ptr + 1)
                tl.store(grads_ptr, sum_of(slopes_ptr, ins, 1024))
                tl.store(grads_ptr + 1, -slope * sum_of(slopes_ptr + ins, ins, 1024))
                tl.store(grads_ptr + 2, sum_of(slopes_ptr + 2 * ins, ins, 1024))
