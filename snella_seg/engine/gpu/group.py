"""Matrices of one shape and rule whose deltas one launch makes, as the Triton kernels take them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...functional import DeltaRule, distance_kernel, mixed_kernel
from ...functional.kernels import check_factors, get_kernel
from ...functional.sparsify import get_sparsifier, hard_factor, soft_factor, weighted_factor
from ...functional.threshold import Rank, quantile_rank
from .language import prepare_kernel, triton
from .tiling import tiles_for

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
BLOCK = 128  # of kernels that work on rows or columns alone
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: 64-bit numbers of the search for one threshold: counts of four bytes, rank, step, low and high.
_SEARCH = 4 * 256 + 4


def available(device: torch.device) -> bool:
    """Whether the kernels run on this device: a GPU with Triton, or any in its interpreter.

    The interpreter is on where ``TRITON_INTERPRET=1`` was set before this module was imported.
    """
    if triton is None:
        return False
    if not isinstance(prepare_kernel, triton.JITFunction):
        return True
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def knows(rule: DeltaRule) -> bool:
    """Whether there are kernels for this way of making a delta."""
    kernel, sparsifier = get_kernel(rule.kernel), get_sparsifier(rule.sparsifier)
    made = (kernel.function, kernel.centred) in KINDS
    return made and sparsifier.factor in MODES and sparsifier.gradient is None


def kind_of(rule: DeltaRule) -> str:
    """How the Triton kernels call the kernel of a rule that they know."""
    kernel = get_kernel(rule.kernel)
    return KINDS[kernel.function, kernel.centred]


class Group:
    """The checked parameters of matrices of one shape, and what all kernels are told of them.

    Args:
        params: of each matrix in_factors (H, in, r/H), out_factors (H, out, r/H) and the scalars,
            in half or single precision; all matrices alike in shapes, dtypes and device.
        rule: how they are made.
        sparsities: of each matrix where a threshold is to be found.

    Raises:
        TypeError: on other dtypes, double precision among them.
        ValueError: on shapes that do not fit, an unknown rule, a sparsity outside [0, 1].
        RuntimeError: where :func:`available` is false.
    """

    def __init__(
        self,
        params: Sequence[tuple[Tensor, ...]],
        rule: DeltaRule,
        sparsities: Sequence[float] | None = None,
    ) -> None:
        first = params[0]
        _check(params, rule)
        self.device, self.count, self.params = first[0].device, len(params), params
        self.heads, self.ins, self.rank = first[0].shape
        self.outs = first[1].shape[1]
        search = sparsities is not None
        ranks = [quantile_rank(self.outs * self.ins, s) for s in sparsities or [0.0] * self.count]
        sparsifier = get_sparsifier(rule.sparsifier)
        self.kind = kind_of(rule)
        self.relative, self.scale = sparsifier.relative, float(rule.scale)
        columns = -(-self.rank // 4) * 4
        self.made = {"HEADS": self.heads, "COLUMNS": columns, "KIND": self.kind}
        self.mode = {"MODE": MODES[sparsifier.factor], "RELATIVE": self.relative}
        self.tiling = tiles_for(self.device, self.kind)
        tile = self.tiling.entries
        tiles = (-(-self.outs // tile.outs), -(-self.ins // tile.ins))
        self.grid = (*tiles, self.count)
        self.tile = {
            **{"BLOCK_OUT": tile.outs, "BLOCK_IN": tile.ins, "num_warps": tile.warps},
            "enable_fp_fusion": False,
        }
        self.size = (self.outs, self.ins)
        stats = {"mixed": 2 * self.ins, "centred": sum(self.size)}.get(self.kind, 0)
        self.state_size = 1 + stats + int(self.relative)
        self.tables = self.empty(self.count, self.heads * columns * sum(self.size))
        self.numbers = self.empty(self.count, 4)
        self.search = self.tables
        if search:
            self.search = self.empty(self.count, _SEARCH, dtype=torch.int64)
        with torch.cuda.device_of(self.tables):
            for i in range(self.count):
                self._prepare(i, ranks[i], columns, search)

    def _prepare(self, i: int, rank: Rank, columns: int, search: bool) -> None:
        """Fill in tables, numbers and the start of the search of one matrix."""
        p, q, *scalars = self.params[i]
        prepare_kernel[(-(-max(self.size) // BLOCK), self.heads)](
            p.contiguous(), q.contiguous(), *(scalars or (p, p, p)), self.tables[i],
            self.numbers[i], self.search[i], *self.size, rank.lower, rank.upper - rank.lower,
            rank.fraction, RANK=self.rank, WIDTH=2 ** math.ceil(math.log2(columns)), SEARCH=search,
            BLOCK=BLOCK, **self.made,
        )  # fmt: skip

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def check(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of the matrices, (G, out, in), with inner stride 1."""
        if tensor.shape != (self.count, *self.size) or tensor.device != self.device:
            raise ValueError(
                f"{name} must have shape {self.size} for each of {self.count} matrices on "
                f"{self.device}, got {tuple(tensor.shape)} on {tensor.device}"
            )
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{name} must be in single or half precision, got {tensor.dtype}")
        return tensor if self.ins == 1 or tensor.stride(2) == 1 else tensor.contiguous()

    def output(self, base: Tensor | None, out: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """The base and the output, checked; a new output where none is given."""
        base = None if base is None else self.check("base", base)
        if out is None:
            dtype = torch.float32 if base is None else base.dtype
            out = self.empty(self.count, *self.size, dtype=dtype)
        elif self.check("out", out) is not out:
            raise ValueError(f"out must have inner stride 1, got strides {out.stride()}")
        return base, out

    def states_of(self, state: Tensor) -> list[tuple[Tensor, ...]]:
        """For each matrix its threshold (0-dim), the statistics of whole rows and columns where K
        takes any ((2, in) of a softmax, (in + out,) of means), and the inverse unit (1,) of a
        relative factor: views of (G, state_size)."""
        states = []
        for row in state:
            threshold, stats, inverse = row[0], row[1 : self.state_size], row[self.state_size :]
            if self.relative:
                stats, inverse = stats[:-1], stats[-1:]
            stats = stats.view(2, self.ins) if self.kind == "mixed" else stats
            states.append((threshold, *(t for t in (stats, inverse) if t.numel())))
        return states

    def state_from(self, states: Sequence[Sequence[Tensor | None]]) -> Tensor:
        """Undo :meth:`states_of`, without a copy where the views still lie as they were made."""
        parts = [t for state in states for t in state if t is not None]
        sizes = [sum(t.numel() for t in state if t is not None) for state in states]
        if sizes != [self.state_size] * self.count:
            raise ValueError(
                f"states must be of {self.count} matrices with {self.state_size} numbers each, as "
                f"they were returned, got {sizes}"
            )
        first, at = parts[0], parts[0].storage_offset()
        for part in parts:
            same = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
            if not same or part.storage_offset() != at or not part.is_contiguous():
                return torch.cat([t.flatten() for t in parts]).view(self.count, -1)
            at += part.numel()
        return first.as_strided((self.count, self.state_size), (self.state_size, 1))


def strides(matrices: Tensor) -> tuple[int, int]:
    """How far matrices (G, out, in) and their rows lie apart."""
    return matrices.stride(0), matrices.stride(1)


def _check(params: Sequence[tuple[Tensor, ...]], rule: DeltaRule) -> None:
    if not knows(rule):
        raise ValueError(
            f"there are no Triton kernels for kernel {rule.kernel!r} with sparsifier "
            f"{rule.sparsifier!r}; use DeltaRule itself"
        )
    first, expected = params[0], 2 + len(get_kernel(rule.kernel).scalars)
    for each in params:
        if len(each) != expected:
            raise ValueError(f"kernel {rule.kernel!r} takes {expected} tensors, got {len(each)}")
        check_factors(*each[:2])
        if any(scalar.numel() != 1 for scalar in each[2:]):
            raise ValueError("alpha, gamma and beta must have one element each")
        if any(p.dtype not in _DTYPES for p in each):
            raise TypeError(
                "parameters must be in single or half precision, got "
                f"{', '.join(str(p.dtype) for p in each)}; use DeltaRule itself for others"
            )
    if not available(first[0].device):
        raise RuntimeError(
            f"cannot run on {first[0].device}: needs Triton and a CUDA device, or "
            "TRITON_INTERPRET=1 set before the import; use DeltaRule itself"
        )
    if any(alike(each) != alike(first) for each in params):
        raise ValueError("the matrices of a group must be alike in shapes, dtypes and device")
    if first[0].shape[1] * first[1].shape[1] == 0:
        raise ValueError("cannot take the threshold of an empty matrix")


def alike(params: tuple[Tensor, ...]) -> list[Any]:
    """What must be equal among the matrices of a group."""
    return [(p.shape, p.dtype, p.device) for p in params]
