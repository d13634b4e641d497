"""Deltas of the distance kernels, made and differentiated by the library of ``distance.c``.

It works on strips of columns, which are shared out among as many threads as torch uses; what is
summed over strips is summed in their order, so no bit depends on how many threads there are.
"""

import numpy as np
import torch
from torch import Tensor

from ...functional import DeltaRule, distance_kernel, mixed_kernel
from ...functional.delta import in_working_precision
from ...functional.kernels import get_kernel
from ...functional.sparsify import get_sparsifier, weighted_factor
from .. import columns as cut
from ..columns import Columns, Product
from ..threshold_search import Bracket, ThresholdSearch
from .library import Guess, Matrix
from .sampled import Entries, max_density
from .strips import LANES, STRIP, run, strips_of

#: Strips that are summed together, as in ``distance.c``.
PAIR = 2
PLAIN, MIXED, CENTRED = range(3)


def knows(rule: DeltaRule) -> bool:
    """Whether the library has a rule's kernel and sparsifier."""
    kernel, sparsifier = get_kernel(rule.kernel), get_sparsifier(rule.sparsifier)
    return (
        (
            kernel.function is distance_kernel
            or (kernel.function is mixed_kernel and not kernel.centred)
        )
        and sparsifier.factor is weighted_factor
        and sparsifier.gradient is None
        and rule.scale > 0
    )


class NativeMatrix:
    """K of one matrix, and the sums of its gradients.

    Args:
        params: in_factors (H, in, r/H), out_factors (H, out, r/H), then the kernel's scalars.
        rule: one that :func:`knows`.
        state: what :func:`write_delta` returned, in backward.
    """

    def __init__(
        self, params: tuple[Tensor, ...], rule: DeltaRule, state: tuple[Tensor | None, ...] = ()
    ) -> None:
        self.params = params
        p, q, *scalars = (t.detach() for t in in_working_precision(params))
        self.p, self.q, self.scale = p.contiguous(), q.contiguous(), rule.scale
        self.scalars = tuple(map(float, scalars)) if scalars else (0.0, 1.0, 0.0)
        self.kind = CENTRED if get_kernel(rule.kernel).centred else MIXED if scalars else PLAIN
        outs, ins = self.shape
        self.first, self.second, self.means, masks = state[3:] if state else (None,) * 4
        self.entries = None if masks is None else Entries.of_state(masks, ins)
        self.threshold = 0.0 if not state or state[0] is None else float(state[0])
        self.unit = 1.0 if not state or state[2] is None else float(state[2])
        self.grad_p, self.grad_q = torch.zeros_like(self.p), torch.zeros_like(self.q)
        self.sums = self.p.new_zeros(
            3, dtype=torch.float64
        )  # by beta, alpha; part of that by gamma
        self.left = self.p.new_zeros(outs)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.q.shape[1], self.p.shape[1]

    def _matrix(self, columns: Columns) -> tuple[Matrix, int, list[Tensor | None]]:
        """Some columns as the library takes them, how many, and what has to outlive the call."""
        p = self.p[:, columns].contiguous()
        parts = [None if t is None else t[columns].contiguous() for t in (self.first, self.second)]
        heads, count, width = p.shape
        shown = [None if t is None else t.data_ptr() for t in (*parts, self.means)]
        matrix = Matrix(heads, width, self.shape[0], count, self.kind, self.scale, *self.scalars)
        matrix.p, matrix.q, matrix.by_output = p.data_ptr(), self.q.data_ptr(), shown[2]
        matrix.by_column = (shown[0], shown[1])
        return matrix, count, [p, *parts]

    def write_ahead(
        self, out: Tensor, base: Tensor | None, scale: float, search: ThresholdSearch
    ) -> tuple[Tensor, Tensor] | None:
        """Write ``base + scale * delta`` into ``out`` before the threshold is known, by where it is
        expected, and put the few right that lie there.

        Returns:
            The threshold (0-dim) and which entries take part, (strips, out), or None: it lies
            elsewhere, nothing of ``out`` is right.
        """
        outs, ins = self.shape
        strips, capacity = strips_of(ins), self._capacity
        masks = torch.empty(strips, outs, dtype=torch.int64)
        counts = torch.empty(strips, 3, dtype=torch.int64)
        values = out.new_empty(strips, capacity)
        places = torch.empty(strips, capacity, dtype=torch.int32)
        start, stride = (None, 0) if base is None else (base.data_ptr(), base.stride(0))
        seen = (t.data_ptr() for t in (counts, values, places, masks))
        low, high = search.range or (0.0, 0.0)
        guess = Guess(low, high, scale, start, stride, capacity, *seen)
        self._dense(out, None, guess)
        if not _collected(search, counts, values):
            return None
        threshold = search.selected()
        if threshold is not None:
            run("snella_settle", (guess, outs, ins), strips, out.numel(), float(threshold), out)
        return None if threshold is None else (threshold, masks)

    def _dense(self, out: Tensor, sums: Tensor | None, guess: Guess | None) -> None:
        """Write K, or with a guess the merged weight; and what columns have in common."""
        ins = self.shape[1]
        self.first = None if self.kind == PLAIN else out.new_empty(ins)
        self.second = out.new_empty(ins) if self.kind == MIXED else None
        matrix, _, kept = self._matrix(slice(0, ins))
        run("snella_dense", (matrix,), strips_of(ins), out.numel(), out, sums, guess)
        _, self.first, self.second = kept

    @property
    def _capacity(self) -> int:
        """How many entries of a strip may be collected."""
        return STRIP * self.shape[0] // 8

    def write_dense(self, out: Tensor) -> None:
        """Write K into ``out``, but for a centred kernel's means over inputs."""
        outs, ins = self.shape
        sums = out.new_empty(strips_of(ins), outs) if self.kind == CENTRED else None
        self._dense(out, sums, None)
        self.means = None if sums is None else _in_order(sums) / ins

    def show(self, out: Tensor, search: ThresholdSearch) -> Tensor:
        """Let ``search`` see K, of what :meth:`write_dense` wrote; return the sum of squares."""
        outs, ins = self.shape
        strips, (low, high) = strips_of(ins), search.range or (0.0, 0.0)
        counts = torch.empty(strips, 3, dtype=torch.int64)
        inside = out.new_empty(strips, self._capacity)
        squares = out.new_empty(strips, dtype=torch.float64)
        given = (self.means, low, high, counts, inside, self._capacity, squares)
        run("snella_look", (out.data_ptr(), outs, ins), strips, out.numel(), *given)
        if search.range is not None:
            _collected(search, counts, inside)
        return squares.sum()

    def merge(
        self,
        out: Tensor,
        means: Tensor | None,
        base: Tensor | None,
        threshold: float,
        scale: float,
    ) -> Tensor:
        """Make ``base + scale * delta`` of K less its means over inputs (out,), in place; return
        which entries take part."""
        outs, ins = self.shape
        masks = torch.empty(strips_of(ins), outs, dtype=torch.int64)
        start = (means, base, 0 if base is None else base.stride(0))
        before = (out.data_ptr(), outs, ins)
        run("snella_merge", before, len(masks), out.numel(), *start, threshold, scale, masks)
        return masks

    def again(
        self,
        columns: Columns,
        out: Tensor | None,
        base: Tensor | None,
        scale: float,
        product: Product | None,
    ) -> None:
        """As of :class:`~snella_seg.engine.tiles.TiledMatrix`; ``product`` may write into ``out``,
        which is made when the gradient has been read."""
        if product is None and out is None:
            return
        grad = None
        if product is not None:
            entries = None if self.entries is None else self.entries.of(columns)
            grad = product(columns, None, entries, out).to(self.p.dtype)
        self._again(columns, scale / self.unit, out, base, grad)

    def _again(
        self,
        columns: Columns,
        scale: float,
        out: Tensor | None = None,
        base: Tensor | None = None,
        grad: Tensor | None = None,
        means: Tensor | None = None,
    ) -> None:
        """Write ``base + scale * delta`` of these columns into ``out``, and take in its gradient
        ``grad``, each where it is given; or that of the mean over inputs, ``means`` (out,), once
        all columns have been seen."""
        matrix, count, kept = self._matrix(columns)
        outs, (heads, _, width) = self.shape[0], self.q.shape
        strips, padded = strips_of(count), -(-width // LANES) * LANES
        pairs = -(-strips // PAIR)
        base, grad = (t if t is None or t.stride(1) == 1 else t.contiguous() for t in (base, grad))
        given = [x for t in (base, out, grad) for x in (t, 0 if t is None else t.stride(0))]
        by_p = by_q = sums = left = None
        if grad is not None or means is not None:
            by_p = self.p.new_zeros(heads, count, width)
            by_q = self.p.new_empty(pairs, heads, outs, padded)
        if grad is not None:
            sums = self.p.new_empty(strips, 3, dtype=torch.float64)
            left = self.p.new_empty(strips, outs) if self.kind == CENTRED else None
        given += [means, by_p, by_q, sums, left]
        run("snella_again", (matrix,), pairs, outs * count, self.threshold, scale, *given)
        if by_p is not None and by_q is not None:
            self.grad_p[:, columns] += by_p
            total = self.grad_q.numpy()
            for part in by_q.numpy():
                total += part[..., :width]
        if sums is not None:
            self.sums += _in_order(sums)
        if left is not None:
            self.left += _in_order(left)

    def gradients(self, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """The sums as gradients of ``params``, in their dtypes; None where not needed."""
        if self.kind == CENTRED and any(needs):
            means = self.left / -self.shape[1]
            for columns in cut.column_tiles(*self.shape, cut.WIDER):
                self._again(columns, 1.0, means=means)
        sums = [self.grad_p * self.scale**2, self.grad_q * self.scale**2]
        if self.kind == MIXED:
            alpha, gamma, _ = self.scalars
            by_beta, by_alpha, along = self.sums
            sums += [by_alpha, along * (-alpha / (gamma or 1e-150) ** 2), by_beta]
        return tuple(
            total.to(param.dtype).reshape(param.shape) if need else None
            for total, param, need in zip(sums, self.params, needs, strict=True)
        )


def _in_order(parts: Tensor) -> Tensor:
    """Sum over the first dimension, one by one, whatever the number of threads."""
    return torch.from_numpy(np.add.reduce(parts.numpy(), axis=0))


def write_delta(
    params: tuple[Tensor, ...],
    rule: DeltaRule,
    sparsity: float,
    bracket: Bracket,
    out: Tensor,
    base: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor | None, ...]:
    """Write ``base + scale * delta`` of one matrix into ``out``, both (out, in).

    Arguments are those of :func:`snella_seg.engine.tiles.write_delta`, in single precision.

    Returns:
        The threshold (0-dim); the indices of the columns that hold non-zero weights, or None when
        those are most; the root mean square of K (0-dim) where the factor is relative to it; peak
        and inverse sum of each column's softmax, or a centred kernel's means over outputs and
        None, all (in,); its means over inputs (out,); and, where the delta is sparse, which
        entries take part: a bit each, in the guise of floats (strips, 2 out).
    """
    matrix, unit = NativeMatrix(params, rule), None
    search = ThresholdSearch(out.numel(), sparsity, bracket)
    relative = get_sparsifier(rule.sparsifier).relative
    base = base if base is None or base.stride(1) == 1 else base.contiguous()
    ahead = None
    if search.range is not None and not relative and matrix.kind != CENTRED:
        ahead = matrix.write_ahead(out, base, scale, search)
        search = ThresholdSearch(out.numel(), sparsity, bracket)
    if ahead is not None:
        threshold, masks = ahead
    else:
        matrix.write_dense(out)
        squares = matrix.show(out, search)
        if relative:
            unit = (squares / out.numel()).sqrt().to(out.dtype)
            unit = unit.clamp_min(torch.finfo(out.dtype).tiny)
            scale = scale / float(unit)
        means, found = matrix.means, search.selected()
        if found is None:
            if means is not None:
                out -= means[:, None]
                means = None
            for rows in out.split(max(1, cut.TILE // out.shape[1])) if search.range is None else ():
                search.add(rows)
            found = search.finish(out)
        threshold, masks = found, matrix.merge(out, means, base, float(found), scale)
    kept = masks.view(torch.float32) if 1 - sparsity <= max_density() else None
    active = Entries(masks, out.shape[1]).active()
    return threshold, active, unit, matrix.first, matrix.second, matrix.means, kept


def _collected(search: ThresholdSearch, counts: Tensor, values: Tensor) -> bool:
    """Let a search see what was counted and collected, unless there was no room for all of it."""
    found = counts[:, 2].tolist()
    if max(found) > values.shape[1]:
        return False
    parts = [part[:n] for part, n in zip(values, found, strict=True)]
    search.add_counted(torch.cat(parts), *counts[:, :2].sum(0).tolist())
    return True
