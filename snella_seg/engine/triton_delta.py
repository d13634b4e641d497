"""The delta of one matrix and its gradients on a GPU, by Triton: SNELLA, arXiv 2510.24037, and
SNELL, arXiv 2411.01800. :class:`snella_seg.functional.DeltaRule` is the plain form of it.

The threshold is exact: a radix select on the bits of |K|. Nothing waits for the device, and the
same input gives the same bits.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..functional import DeltaRule, distance_kernel, mixed_kernel
from ..functional.kernels import check_factors, get_kernel
from ..functional.sparsify import get_sparsifier, hard_factor, soft_factor, weighted_factor
from ..functional.threshold import interpolate
from .triton_kernels import (
    count_kernel,
    distances_kernel,
    factor_grad_kernel,
    finish_kernel,
    merge_kernel,
    neighbours_kernel,
    rows_kernel,
    sums_kernel,
    triton,
    write_kernel,
)

BLOCK_OUT, BLOCK_IN = 64, 32  # tile of the elementwise kernels
BLOCK_OWN, BLOCK_OTHER, BLOCK_COLUMNS = 32, 16, 16  # tile of the factors' gradients
MIN_CHUNK, PROGRAMS = 64, 1024  # how a long loop is split: shortest part, programs aimed at
#: Function of a kernel that is made here, whether it is centred -> how the Triton kernels call it.
KINDS: dict[tuple[Callable[..., Tensor], bool], str] = {
    (distance_kernel, False): "distance",
    (distance_kernel, True): "centred",
    (mixed_kernel, False): "mixed",
}
#: Functions of the sparsifiers that are made here -> how the Triton kernels call them.
MODES: dict[Callable[..., Tensor], str] = {
    weighted_factor: "weighted",
    soft_factor: "soft",
    hard_factor: "hard",
}
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def available(device: torch.device) -> bool:
    """Whether the functions below run on this device: a GPU with Triton, or any in its interpreter.

    The interpreter is on where ``TRITON_INTERPRET=1`` was set before this module was imported.
    """
    if triton is None:
        return False
    if not isinstance(write_kernel, triton.JITFunction):
        return True
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def knows(rule: DeltaRule) -> bool:
    """Whether there are kernels for this way of making a delta."""
    kernel, sparsifier = get_kernel(rule.kernel), get_sparsifier(rule.sparsifier)
    made = (kernel.function, kernel.centred) in KINDS
    return made and sparsifier.factor in MODES and sparsifier.gradient is None


class _Matrix:
    """The checked parameters of one matrix, in the form in which the kernels take them."""

    def __init__(self, params: tuple[Tensor, ...], rule: DeltaRule):
        if not knows(rule):
            raise ValueError(
                f"there are no Triton kernels for kernel {rule.kernel!r} with sparsifier "
                f"{rule.sparsifier!r}; use DeltaRule itself"
            )
        kernel = get_kernel(rule.kernel)
        count = 2 + len(kernel.scalars)
        if len(params) != count:
            raise ValueError(f"kernel {rule.kernel!r} takes {count} tensors, got {len(params)}")
        check_factors(*params[:2])
        if any(p.dtype not in _DTYPES for p in params):
            raise TypeError(
                "parameters must be in single or half precision, got "
                f"{', '.join(str(p.dtype) for p in params)}; use DeltaRule itself for others"
            )
        self.device = params[0].device
        if not available(self.device):
            raise RuntimeError(
                f"cannot run on {self.device}: needs Triton and a CUDA device, or "
                "TRITON_INTERPRET=1 set before the import; use DeltaRule itself"
            )
        self.params, self.kind = params, KINDS[kernel.function, kernel.centred]
        sparsifier = get_sparsifier(rule.sparsifier)
        self.relative = sparsifier.relative
        self.mode = {"MODE": MODES[sparsifier.factor], "RELATIVE": sparsifier.relative}
        self.scale = float(rule.scale)
        self.heads, self.ins, self.rank = params[0].shape
        self.outs = params[1].shape[1]
        if self.outs * self.ins == 0:
            raise ValueError("cannot take the threshold of an empty matrix")
        self.p, self.q = self._table(params[0]), self._table(params[1])
        self.scalars = self.p
        if self.kind == "mixed":
            self.scalars = torch.cat([scalar.reshape(1) for scalar in params[2:]]).float()
        self.tables = (self.p, self.q, self.scalars)
        self.made = {"HEADS": self.heads, "COLUMNS": self.p.shape[1], "KIND": self.kind}
        self.grid = (triton.cdiv(self.outs, BLOCK_OUT), triton.cdiv(self.ins, BLOCK_IN))
        self.tile = {"BLOCK_OUT": BLOCK_OUT, "BLOCK_IN": BLOCK_IN, "enable_fp_fusion": False}

    def _table(self, factor: Tensor) -> Tensor:
        """The factor in single precision (H, r/H, features), r/H filled up to a multiple of 4."""
        heads, features, rank = factor.shape
        make = torch.zeros if rank % 4 else torch.empty
        shape = (heads, triton.cdiv(rank, 4) * 4, features)
        table = make(shape, dtype=torch.float32, device=factor.device)
        table[:, :rank].copy_(factor.transpose(1, 2))
        return table

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def check(self, name: str, tensor: Tensor) -> Tensor:
        if tensor.shape != (self.outs, self.ins) or tensor.device != self.device:
            raise ValueError(
                f"{name} must have shape {(self.outs, self.ins)} on {self.device}, got "
                f"{tuple(tensor.shape)} on {tensor.device}"
            )
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{name} must be in single or half precision, got {tensor.dtype}")
        return tensor if self.ins == 1 or tensor.stride(1) == 1 else tensor.contiguous()

    def unpack(self, state: tuple[Tensor | None, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Threshold, statistics and inverse unit of a state; a stand-in where there are none."""
        threshold, *rest = (t for t in state if t is not None)
        stats = self.p if self.kind == "distance" else rest.pop(0)
        return threshold, stats, rest.pop(0) if self.relative else self.p

    def output(self, base: Tensor | None, out: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """The base and the output, checked; a new output where none is given."""
        base = None if base is None else self.check("base", base)
        if out is None:
            dtype = torch.float32 if base is None else base.dtype
            out = self.empty(self.outs, self.ins, dtype=dtype)
        elif self.check("out", out) is not out:
            raise ValueError(f"out must have inner stride 1, got strides {out.stride()}")
        return base, out


def _stats(m: _Matrix, dense: Tensor, size: tuple[int, int, int]) -> Tensor | None:
    """Write D; return what K takes from whole rows and columns of it, None where nothing.

    For ``mixed`` the maximum and the sum of exponentials of each input's softmax, (2, in); for
    ``centred`` the means over outputs, then those over inputs of what that leaves, (in + out,).
    """
    partial = m.p
    if m.kind != "distance":
        partial = m.empty(2 if m.kind == "mixed" else 1, m.grid[0], m.ins)
    distances_kernel[m.grid](*m.tables, dense, partial, *size, m.scale, **m.made, **m.tile)
    if m.kind == "mixed":
        stats = m.empty(2, m.ins)
        merge_kernel[(m.grid[1],)](
            partial, stats, m.grid[0], m.ins, BLOCK=BLOCK_IN, enable_fp_fusion=False
        )
        return stats
    if m.kind == "distance":
        return None
    stats = m.empty(m.ins + m.outs)
    torch.div(partial[0].sum(0), m.outs, out=stats[: m.ins])
    partial = m.empty(m.grid[1], m.outs)
    rows_kernel[m.grid](dense, stats, partial, *size, **m.tile)
    torch.div(partial.sum(0), m.ins, out=stats[m.ins :])
    return stats


def _threshold(m: _Matrix, dense: Tensor, counts: Tensor, sparsity: float) -> Tensor:
    """The quantile of |K|, from K and the counts of its first byte; see ``quantile_threshold``."""
    position = sparsity * (dense.numel() - 1)
    lower = math.floor(position)
    place = (m.outs, m.ins, dense.stride(0), lower)
    for digit in (1, 2, 3):
        count_kernel[m.grid](dense, counts, *place, DIGIT=digit, **m.tile)
    pair = torch.full((2,), 0x7FFFFFFF, dtype=torch.int32, device=m.device)
    neighbours_kernel[m.grid](dense, counts, pair, *place, math.ceil(position) - lower, **m.tile)
    low, high = pair.view(torch.float32).unbind()
    return interpolate(low, high, position - lower)


def _inverse_unit(squares: Tensor, entries: int) -> Tensor:
    """1 over :func:`snella_seg.functional.sparsify.unit_of` K, (1,), from sums of its squares."""
    size = squares.sum().div(entries).sqrt().clamp_min(torch.finfo(squares.dtype).tiny)
    return size.reciprocal().reshape(1)


@torch.no_grad()
def launch_delta(
    params: tuple[Tensor, ...],
    rule: DeltaRule,
    sparsity: float,
    base: Tensor | None = None,
    out: Tensor | None = None,
    amount: float = 1.0,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Make the delta of one matrix and add it to a base; nothing waits for the device.

    A single-precision output that shares no memory with the base serves as the workspace;
    otherwise a single-precision matrix lives as long as the call.

    Args:
        params: in_factors (H, in, r/H), out_factors (H, out, r/H); for the kernel ``mixed`` also
            alpha, gamma, beta, one element each. Half or single precision, worked on in single.
        rule: which delta.
        sparsity: in [0, 1]; at 1 the delta is zero.
        base: what the delta is added to, (out, in), of any row stride; half or single precision.
        out: where the result goes, likewise, with inner stride 1; it may be ``base`` itself.
        amount: multiplies the delta.

    Returns:
        ``base + amount * delta`` (out, in) in the dtype of ``out``, else of ``base``, else single
        precision; and the state for :func:`launch_backward`: the threshold (0-dim); for ``mixed``
        and ``centred`` the statistics of whole rows and columns; and where the factor is relative
        the inverse of the root mean square of K (1-dim).

    Raises:
        TypeError: on other dtypes, double precision among them.
        ValueError: on shapes that do not fit, an unknown rule, a sparsity outside [0, 1].
        RuntimeError: where :func:`available` is false.
    """
    sparsity = float(sparsity)
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(f"sparsity must lie in [0, 1], got {sparsity}")
    m = _Matrix(params, rule)
    base, out = m.output(base, out)
    shared = base is not None and (
        base.untyped_storage().data_ptr() == out.untyped_storage().data_ptr()
    )
    dense = m.empty(m.outs, m.ins) if shared or out.dtype != torch.float32 else out
    size = (m.outs, m.ins, dense.stride(0))
    with torch.cuda.device_of(m.p):
        stats = _stats(m, dense, size)
        counts = torch.zeros(4 * 256, dtype=torch.int64, device=m.device)
        squares = m.empty(*m.grid) if m.relative else m.p
        finish_kernel[m.grid](
            dense, m.scalars, m.p if stats is None else stats, counts, squares, *size, KIND=m.kind,
            RELATIVE=m.relative, **m.tile,
        )  # fmt: skip
        inverse = _inverse_unit(squares, m.outs * m.ins) if m.relative else None
        threshold = _threshold(m, dense, counts, sparsity)
        source = out if base is None else base
        strides = (source.stride(0), out.stride(0))
        has_base = base is not None
        write_kernel[m.grid](
            dense, threshold, m.p if inverse is None else inverse, source, out, *size, *strides,
            float(amount), BASE=has_base, **m.mode, **m.tile,
        )  # fmt: skip
    return out, (threshold, *(t for t in (stats, inverse) if t is not None))


@torch.no_grad()
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
    """Gradients of the parameters; the delta is recomputed, never stored unless ``out`` is given.

    Args:
        params, rule: those given to :func:`launch_delta`, unchanged.
        state: what it returned.
        grad_delta: gradient of the delta, (out, in), of any row stride; half or single precision.
        needs: which parameters want a gradient; None stands for all.
        base, out, amount: if ``out`` is given, ``base + amount * delta`` is written there, too. It
            may be ``base`` but must not overlap ``grad_delta``.

    Returns:
        A gradient of shape and dtype of each parameter, None where none is wanted.

    Raises:
        As :func:`launch_delta`, and ValueError when ``needs`` does not fit the parameters.
    """
    m = _Matrix(params, rule)
    needs = (True,) * len(params) if needs is None else tuple(needs)
    if len(needs) != len(params):
        raise ValueError(f"needs must have one entry per parameter ({len(params)}), got {needs}")
    grad = m.check("grad_delta", grad_delta)
    write, (threshold, stats, inverse) = out is not None, m.unpack(state)
    recipe = (stats, threshold, inverse, grad)
    base, out = m.output(base, out) if write else (None, grad)
    source, has_base = (out, False) if base is None else (base, True)
    grads: list[Tensor | None] = [None] * len(params)
    with torch.cuda.device_of(m.p):
        means = m.p
        if write or (m.kind != "distance" and any(needs)):
            partial = m.p
            if m.kind != "distance":
                partial = m.empty(4 if m.kind == "mixed" else 1, m.grid[0], m.ins)
            partial_rows = m.empty(m.grid[1], m.outs) if m.kind == "centred" else m.p
            strides = (grad.stride(0), source.stride(0), out.stride(0))
            sums_kernel[m.grid](
                *m.tables, *recipe, source, out, partial, partial_rows, m.outs, m.ins, *strides,
                m.scale, float(amount), BASE=has_base, WRITE=write, **m.mode, **m.made, **m.tile,
            )  # fmt: skip
            if m.kind == "centred":
                of_inputs, of_outputs = partial[0].sum(0) / m.outs, partial_rows.sum(0) / m.ins
                means = torch.cat([of_inputs, of_outputs - of_inputs.mean()])
            if m.kind == "mixed":
                sums = partial.sum(1)
                means = sums[0]
                if any(needs[2:]):
                    spread = (sums[1] - means * sums[2]).sum()
                    alpha, gamma, _ = m.scalars
                    grads[2:] = [means.sum(), -alpha / gamma * spread, sums[3].sum()]
        for i in (0, 1):
            if needs[i]:
                grads[i] = _factor_grad(m, recipe, means, of_inputs=i == 0)
    return tuple(
        g.to(p.dtype).reshape(p.shape) if need and g is not None else None
        for g, p, need in zip(grads, params, needs, strict=True)
    )


def _factor_grad(
    m: _Matrix, recipe: tuple[Tensor, Tensor, Tensor, Tensor], means: Tensor, of_inputs: bool
) -> Tensor:
    """Gradient of P or Q in single precision; chunks depend on shapes only, so bits repeat."""
    stats, *rest = recipe
    grad = recipe[-1]
    own, other = (m.ins, m.outs) if of_inputs else (m.outs, m.ins)
    columns = min(BLOCK_COLUMNS, triton.next_power_of_2(m.rank))
    tiles, blocks = triton.cdiv(own, BLOCK_OWN), m.heads * triton.cdiv(m.rank, columns)
    wanted = max(1, PROGRAMS // (tiles * blocks))
    chunk = max(MIN_CHUNK, triton.cdiv(other, wanted * BLOCK_OTHER) * BLOCK_OTHER)
    parts = m.empty(triton.cdiv(other, chunk), m.heads, own, m.rank)
    factor_grad_kernel[(tiles, len(parts), blocks)](
        *m.tables, stats, means, *rest, parts, m.outs, m.ins, grad.stride(0), chunk,
        m.scale, RANK=m.rank, OF_INPUTS=of_inputs, BLOCK_OWN=BLOCK_OWN, BLOCK_OTHER=BLOCK_OTHER,
        BLOCK_COLUMNS=columns, enable_fp_fusion=False, **m.mode, **m.made,
    )  # fmt: skip
    return parts.sum(0)
