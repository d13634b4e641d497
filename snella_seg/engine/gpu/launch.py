"""Deltas and their gradients on a GPU, by Triton: SNELLA, arXiv 2510.24037, and SNELL, arXiv
2411.01800. :class:`snella_seg.functional.DeltaRule` is the plain form of it.

Matrices of one shape and rule go together: a launch costs the same for one as for several. The
threshold is exact: a radix select on the bits of |K|. Nothing waits for the device, and the same
input gives the same bits, in whatever company.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...functional import DeltaRule
from ..distance_tiles import NEAR
from .delta_kernels import (
    count_kernel,
    distances_kernel,
    finish_kernel,
    neighbours_kernel,
    softmax_kernel,
    write_kernel,
)
from .gradient_kernels import factors_kernel, fold_kernel, slopes_kernel, sums_kernel
from .group import BLOCK, Group, strides
from .language import means_kernel

FOLD_BLOCK = 512  # entries of a factor's gradient that one program sums up
MIN_CHUNK, PROGRAMS = 64, 1024  # how a long loop is split: shortest part, programs aimed at
PARTS = 1 << 25  # parts of gradients that are kept at a time: 128 MiB, but for the largest layers


@torch.no_grad()
def launch_deltas(
    params: Sequence[tuple[Tensor, ...]],
    rule: DeltaRule,
    sparsities: Sequence[float],
    base: Tensor | None = None,
    out: Tensor | None = None,
    amount: float = 1.0,
) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """Make the deltas of matrices of one shape and add them to a base.

    A single-precision output that shares no memory with the base serves as the workspace;
    otherwise single-precision matrices live as long as the call.

    Args:
        params: of each matrix in_factors (H, in, r/H), out_factors (H, out, r/H); for the kernel
            ``mixed`` also alpha, gamma, beta, one element each. Half or single precision, worked
            on in single.
        rule: which delta.
        sparsities: of each matrix, in [0, 1]; at 1 the delta is zero.
        base: what the deltas are added to, (G, out, in), of any strides but the last; half or
            single precision.
        out: where the result goes, likewise, with inner stride 1; it may be ``base`` itself.
        amount: multiplies the deltas.

    Returns:
        ``base + amount * deltas`` (G, out, in) in the dtype of ``out``, else of ``base``, else
        single precision; and a state of each matrix for :func:`launch_backwards`: the threshold
        (0-dim); for ``mixed`` and ``centred`` the statistics of whole rows and columns; and where
        the factor is relative the inverse of the root mean square of K (1-dim).

    Raises:
        TypeError: on other dtypes, double precision among them.
        ValueError: on shapes that do not fit, an unknown rule, a sparsity outside [0, 1].
        RuntimeError: where :func:`~snella_seg.engine.gpu.group.available` is false.
    """
    g = Group(params, rule, sparsities)
    base, out = g.output(base, out)
    shared = base is not None and (
        base.untyped_storage().data_ptr() == out.untyped_storage().data_ptr()
    )
    dense = g.empty(g.count, *g.size) if shared or out.dtype != torch.float32 else out
    source, state = out if base is None else base, g.empty(g.count, g.state_size)
    place = (*g.size, *strides(dense))
    squares = g.empty(*g.grid) if g.relative else g.numbers
    partial = _room(g, 2)
    with torch.cuda.device_of(g.tables):
        distances_kernel[g.grid](
            g.tables, g.numbers, dense, partial, *place, partial.stride(0), g.scale, **g.made,
            **g.tile,
        )  # fmt: skip
        if g.kind == "centred":
            _means(g, partial, state[:, 1:])
        if g.kind == "mixed":
            softmax_kernel[(-(-g.ins // BLOCK), 1, g.count)](
                partial, state[:, 1:], g.grid[0], g.ins, partial.stride(0), g.state_size,
                BLOCK=BLOCK, enable_fp_fusion=False,
            )  # fmt: skip
        finish_kernel[g.grid](
            dense, g.numbers, state, g.search, squares, *place, g.state_size, KIND=g.kind,
            RELATIVE=g.relative, **g.tile,
        )  # fmt: skip
        for digit in (1, 2, 3):
            count_kernel[g.grid](
                dense, g.search, squares, state, *place, g.state_size, DIGIT=digit, KIND=g.kind,
                RELATIVE=g.relative, **g.tile,
            )  # fmt: skip
        neighbours_kernel[g.grid](dense, g.search, *place, **g.tile)
        write_kernel[g.grid](
            dense, g.numbers, g.search, state, source, out, *place, *strides(source),
            *strides(out), g.state_size, float(amount), BASE=base is not None, KIND=g.kind,
            **g.mode, **g.tile,
        )  # fmt: skip
    return out, g.states_of(state)


def _room(g: Group, of_softmax: int) -> Tensor:
    """Room for what tiles sum up: for a softmax so many numbers for each input and row of tiles."""
    tiles_out, tiles_in = g.grid[:2]
    centring = tiles_out * g.ins + tiles_in * g.outs + tiles_out * tiles_in
    sizes = {"mixed": of_softmax * tiles_out * g.ins, "centred": centring, "distance": 1}
    return g.empty(g.count, sizes[g.kind])


def _means(g: Group, partial: Tensor, means: Tensor) -> None:
    """What centring takes out: means over outputs, then over inputs less the mean of all."""
    means_kernel[(-(-max(g.size) // BLOCK), 2, g.count)](
        partial, means, *g.size, *g.grid[:2], partial.stride(0), means.stride(0), BLOCK=BLOCK,
        enable_fp_fusion=False,
    )  # fmt: skip


@torch.no_grad()
def launch_backwards(
    params: Sequence[tuple[Tensor, ...]],
    rule: DeltaRule,
    states: Sequence[tuple[Tensor | None, ...]],
    grad_deltas: Tensor,
    needs: Sequence[tuple[bool, ...]] | None = None,
    base: Tensor | None = None,
    out: Tensor | None = None,
    amount: float = 1.0,
) -> list[tuple[Tensor | None, ...]]:
    """Gradients of the parameters; deltas are made again, never stored unless ``out`` is given.

    Args:
        params, rule: those given to :func:`launch_deltas`, unchanged.
        states: what it returned.
        grad_deltas: gradient of the deltas, (G, out, in), of any strides but the last; half or
            single precision.
        needs: which parameters of each matrix want a gradient; None stands for all.
        base, out, amount: if ``out`` is given, ``base + amount * deltas`` is written there, too. It
            may be ``base`` but must not overlap ``grad_deltas``.

    Returns:
        For each matrix a gradient of shape and dtype of each parameter, None where none is wanted.

    Raises:
        As :func:`launch_deltas`, and ValueError when ``needs`` does not fit the parameters.
    """
    g = Group(params, rule)
    needs = [(True,) * len(each) for each in params] if needs is None else needs
    for each, need in zip(params, needs, strict=True):
        if len(need) != len(each):
            raise ValueError(
                f"needs must have one entry per parameter ({len(each)}), got {tuple(need)}"
            )
    grad, state = g.check("grad_deltas", grad_deltas), g.state_from(states)
    write, wanted = out is not None, any(map(any, needs))
    base, out = g.output(base, out) if write else (None, grad)
    source = out if base is None else base
    slopes, grads = g.numbers, g.numbers
    with torch.cuda.device_of(g.tables):
        if write or (g.kind != "distance" and wanted):
            partial = _room(g, 4)
            sums_kernel[g.grid](
                g.tables, g.numbers, state, grad, source, out, partial, *g.size, *strides(grad),
                *strides(source), *strides(out), g.state_size, partial.stride(0), g.scale,
                float(amount), BASE=base is not None, WRITE=write, **g.mode, **g.made, **g.tile,
            )  # fmt: skip
            if g.kind == "centred":
                slopes = g.empty(g.count, sum(g.size))
                _means(g, partial, slopes)
            if g.kind == "mixed":
                slopes = g.empty(g.count, 3 * g.ins)
                slopes_kernel[(-(-g.ins // BLOCK), 1, g.count)](
                    partial, slopes, g.grid[0], g.ins, partial.stride(0), slopes.stride(0),
                    BLOCK=BLOCK, enable_fp_fusion=False,
                )  # fmt: skip
        if wanted:
            grads = _factor_grads(g, state, slopes, grad)
    return [_split(*entry) for entry in zip(params, needs, grads, strict=True)]


def _factor_grads(g: Group, state: Tensor, slopes: Tensor, grad: Tensor) -> Tensor:
    """Gradients of all parameters, those of a matrix one behind the other; chunks depend on the
    shape alone, so bits repeat."""
    tile, outs, ins = g.tiling.factors, g.outs, g.ins
    columns = min(32, max(16, 1 << (g.rank - 1).bit_length()))
    tiles, blocks = -(-ins // tile.ins), (g.heads + 1) // 2 * -(-g.rank // columns)
    wanted = max(1, PROGRAMS // (tiles * blocks))
    rows = -(-outs // wanted)
    chunk = max(MIN_CHUNK, -(-rows // tile.outs) * tile.outs)
    chunks, width = -(-outs // chunk), g.heads * g.rank
    of_inputs, of_outputs = chunks * ins * width, outs * width
    band = min(tiles, max(1, (PARTS // g.count - of_inputs) // of_outputs))
    parts = g.empty(g.count, of_inputs + band * of_outputs)
    scalars = 4 if g.kind == "mixed" else 0  # three; other matrices stay aligned
    grads = g.empty(g.count, (ins + outs) * width + scalars)
    for first in range(0, tiles, band):
        here = min(band, tiles - first)
        factors_kernel[(here, chunks, g.count * blocks)](
            g.tables, g.numbers, state, slopes, grad, parts, outs, ins, *strides(grad),
            g.state_size, slopes.stride(0), parts.stride(0), chunk, first, g.scale, RANK=g.rank,
            BLOCK_OUT=tile.outs, BLOCK_IN=tile.ins, BLOCK_COLUMNS=columns, NEAR=NEAR,
            num_warps=tile.warps, enable_fp_fusion=False, **g.mode, **g.made,
        )  # fmt: skip
        last = first + here == tiles
        fold_kernel[(-(-max(g.size) * width // FOLD_BLOCK), 2 if last else 1, g.count)](
            parts, slopes, g.numbers, grads, outs, ins, chunks, here, first, parts.stride(0),
            slopes.stride(0), grads.stride(0), WIDTH=width, KIND=g.kind, BLOCK=FOLD_BLOCK,
            enable_fp_fusion=False,
        )  # fmt: skip
    return grads


def _split(
    params: tuple[Tensor, ...], needs: tuple[bool, ...], grads: Tensor
) -> tuple[Tensor | None, ...]:
    """The wanted gradients of a matrix, of their parameters' shapes and dtypes."""
    if not any(needs):
        return (None,) * len(params)
    parts = grads[: sum(p.numel() for p in params)].split([p.numel() for p in params])
    return tuple(
        part.view(p.shape).to(p.dtype) if need else None
        for part, p, need in zip(parts, params, needs, strict=True)
    )


def launch_delta(
    params: tuple[Tensor, ...],
    rule: DeltaRule,
    sparsity: float,
    base: Tensor | None = None,
    out: Tensor | None = None,
    amount: float = 1.0,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """:func:`launch_deltas` of one matrix, (out, in)."""
    made, (state,) = launch_deltas([params], rule, [sparsity], _one(base), _one(out), amount)
    return made[0] if out is None else out, state


def launch_backward(
    params: tuple[Tensor, ...],
    rule: DeltaRule,
    state: tuple[Tensor | None, ...],
    grad_delta: Tensor,
    needs: tuple[bool, ...] | None = None,
    base: Tensor | None = None,
    out: Tensor | None = None,
    amount: float = 1.0,
) -> tuple[Tensor | None, ...]:
    """:func:`launch_backwards` of one matrix, (out, in)."""
    wanted = None if needs is None else [tuple(needs)]
    recipe = ([params], rule, [state], grad_delta[None], wanted)
    return launch_backwards(*recipe, _one(base), _one(out), amount)[0]


def _one(matrix: Tensor | None) -> Tensor | None:
    return None if matrix is None else matrix[None]
