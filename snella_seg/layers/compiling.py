"""Adapted layers under ``torch.compile`` and ``torch.export``.

Compiled graphs hold the product as one operator, ``snella_seg::product``, which calls the layer's
own code when it runs; so results are those without a compiler. LoRA is ordinary products. Exported
programs hold ordinary operators only, and need nothing of this package: the deltas are made by
their definition.
"""

import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.blocks import MadeBlock
from ..engine.branch import Branch
from ..engine.call import Call, flat, grouped
from ..engine.low_rank import add_low_rank, is_low_rank
from ..engine.native.strips import strips_of
from ..engine.precision import merging_loses_deltas, product_dtype
from ..engine.product import backward_product, forward_product
from ..engine.sampling import TokenSample
from ..engine.tiles import State
from ..functional import DeltaRule
from ..functional.sparsify import apply_threshold
from ..functional.threshold import interpolate

if TYPE_CHECKING:
    from .adapter import Adapter
    from .module import AdaptedModule

#: The rows of a packed weight that a product is taken with: the first, and one beyond the last.
Rows = tuple[int, int]

_LAYERS: "weakref.WeakValueDictionary[int, AdaptedModule]" = weakref.WeakValueDictionary()
_handles = itertools.count()
#: Shapes of the states of a layer's blocks, by its rows; None where there is no tensor.
_SHAPES: "weakref.WeakKeyDictionary[AdaptedModule, dict[Rows, list[list[torch.Size | None]]]]"
_SHAPES = weakref.WeakKeyDictionary()


def enter(layer: "AdaptedModule") -> int:
    """Let compiled graphs find a layer; return the number by which they do."""
    handle = next(_handles)
    _LAYERS[handle] = layer
    return handle


def product(
    layer: "AdaptedModule",
    x: Tensor,
    bias: Tensor | None,
    start: int,
    stop: int | None,
    kept: Tensor | None,
) -> Tensor:
    """``layer.product`` while a graph is made of it."""
    weight = layer.base_weight
    stop = len(weight) if stop is None else stop
    chosen = _adapters(layer, start, stop) if layer.adapters_enabled else []
    rows = weight if stop - start == len(weight) else weight[start:stop]
    if not chosen:
        return F.linear(x, rows, bias)
    rules = all(type(adapter.rule) is DeltaRule for _, adapter in chosen)
    if rules and not layer.live_drops and all(is_low_rank(a.rule) for _, a in chosen):
        y = F.linear(x, rows, bias)
        for (first, last), adapter in chosen:
            y = add_low_rank(y, x, (first - start, last - start), adapter.rule, adapter.params)
        return y
    if rules and not layer.live_drops and _exporting():
        return F.linear(x, exported_weight(layer, start, stop), bias)
    if not rules or _product is None or layer.live_drops or layer.computes_products:
        return _outside(layer.product, x, bias, start, stop, kept)
    params = [p for _, adapter in chosen for p in adapter.params]
    dtype = product_dtype(weight)
    return _product(x, rows, bias, params, layer.handle, start, stop, layer.live, dtype)[0]


def effective_weight(layer: "AdaptedModule") -> Tensor:
    """``layer.effective_weight`` while a graph is made of it."""
    if _exporting():
        return exported_weight(layer, 0, len(layer.base_weight))
    return _outside(layer.effective_weight)


def is_compiling() -> bool:
    """Whether a graph is being made; before torch 2.3 compilers see the layers' own code."""
    asked = getattr(torch.compiler, "is_compiling", None)
    return asked is not None and bool(asked())


def _exporting() -> bool:
    asked = getattr(torch.compiler, "is_exporting", None)  # torch < 2.7 has none
    return asked is not None and bool(asked())


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _outside(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    return function(*arguments)


def _adapters(
    layer: "AdaptedModule", start: int, stop: int
) -> list[tuple[tuple[int, int], "Adapter"]]:
    """Row ranges and adapters within some rows, in the order of ``layer.delta_blocks``."""
    found = []
    for name, adapter in layer.named_adapters():
        first, last = layer.adapter_rows[name]
        if start < last and first < stop:
            found.append(((first, last), adapter))
    return found


def exported_weight(layer: "AdaptedModule", start: int, stop: int) -> Tensor:
    """The effective rows by operators of torch alone; the sparsity stays a buffer.

    Raises:
        NotImplementedError: for adapters whose delta is not made by a rule.
    """
    weight, at, parts = layer.base_weight, start, []
    for (first, last), adapter in sorted(_adapters(layer, start, stop), key=lambda entry: entry[0]):
        if type(adapter.rule) is not DeltaRule:
            raise NotImplementedError(
                f"torch.export knows nothing of {type(adapter).__name__}: merge the adapters first"
            )
        delta = exported_delta(adapter.rule, adapter.params, adapter.sparsity)
        parts += [weight[at:first], weight[first:last] + delta.to(weight.dtype)]
        at = last
    return torch.cat([*parts, weight[at:stop]])


def exported_delta(rule: DeltaRule, params: tuple[Tensor, ...], sparsity: Tensor) -> Tensor:
    """The delta of :class:`DeltaRule` for a sparsity that is a tensor, 0-dim."""
    dense = rule.dense(params)
    if not rule.competes:
        return apply_threshold(dense, rule.threshold(dense, 0.0), rule.sparsifier)
    position = sparsity * (dense.numel() - 1)
    ends = torch.stack([position.floor(), position.ceil()]).long()
    low, high = dense.detach().abs().flatten().sort().values[ends].unbind()
    threshold = interpolate(low, high, (position - position.floor()).to(dense.dtype))
    return apply_threshold(dense, threshold, rule.sparsifier)


def _call(layer: int, params: Sequence[Tensor], start: int, stop: int, weight: Tensor) -> Call:
    """The call of a layer over the parameters that a graph holds."""
    blocks = _LAYERS[layer].delta_blocks(start, stop)
    groups = grouped([p.detach() for p in params], [len(block.params) for block in blocks])
    blocks = [block.with_params(group) for block, group in zip(blocks, groups, strict=True)]
    branch = Branch(None, None, 1.0, 0.0, 0)
    return Call(blocks, merging_loses_deltas(weight), product_dtype(weight), branch, None)


def _length(rows: int, columns: int) -> int:
    """What the states of a block of this shape need at most: two numbers, three means or sums, and
    a bit an entry."""
    return 2 + rows + 2 * columns + 2 * rows * strips_of(columns)


def _pack(
    states: Sequence[State], layer: int, rows: Rows, size: int, offset: float | Tensor
) -> Tensor:
    """Offset and states in one tensor (size,), but the columns that have a gradient: all do."""
    whole = [[t if t is not None and t.is_floating_point() else None for t in s] for s in states]
    shapes = [[None if t is None else t.shape for t in state] for state in whole]
    _SHAPES.setdefault(_LAYERS[layer], {})[rows] = shapes
    tensors = [t.flatten() for t in flat(whole) if t is not None]
    packed = torch.cat([tensors[0].new_full((1,), offset), *tensors])
    return torch.cat([packed, packed.new_zeros(size - len(packed))])


def _unpack(packed: Tensor, layer: int, rows: Rows) -> list[State]:
    at, states = 1, []
    for shapes in _SHAPES[_LAYERS[layer]][rows]:
        state: list[Tensor | None] = []
        for shape in shapes:
            size = 0 if shape is None else shape.numel()
            state.append(None if shape is None else packed[at : at + size].view(shape))
            at += size
        states.append(tuple(state))
    return states


def _state_size(params: Sequence[Tensor]) -> int:
    factors = [p for p in params if p.ndim == 3]
    pairs = zip(factors[::2], factors[1::2], strict=True)
    return 1 + sum(_length(q.shape[1], p.shape[1]) for p, q in pairs)


def _under(dtype: torch.dtype, weight: Tensor) -> torch.autocast:
    """The mixed precision in which a graph was made; when it runs, that is not in force."""
    half = dtype != weight.dtype
    return torch.autocast(weight.device.type, dtype=dtype if half else None, enabled=half)


_product: Any = None
if hasattr(torch.library, "custom_op"):  # torch >= 2.4, which infers no schema from our types
    _PLACE = "SymInt layer, SymInt start, SymInt stop"

    @torch.library.custom_op(
        "snella_seg::product",
        mutates_args=(),
        schema=f"(Tensor x, Tensor weight, Tensor? bias, Tensor[] params, {_PLACE}, bool live, "
        "ScalarType dtype) -> (Tensor, Tensor)",
    )
    def _product(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        params: Sequence[Tensor],
        layer: int,
        start: int,
        stop: int,
        live: bool,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        with _under(dtype, weight), torch.no_grad():
            if not live:
                y = _LAYERS[layer].product(x, bias, start, stop)
                return y.contiguous(), y.new_zeros(_state_size(params))
            call = _call(layer, params, start, stop, weight)
            call.sample = TokenSample.draw(_LAYERS[layer].token_share)
            y, _, states = forward_product(x, weight, bias, call)
        size = _state_size(params)
        return y.contiguous(), _pack(states, layer, (start, stop), size, call.sample.offset)

    @_product.register_fake
    def _(x, weight, bias, params, layer, start, stop, live, dtype):  # type: ignore[no-untyped-def]
        working = params[0].dtype if params[0].dtype == torch.float64 else torch.float32
        y = x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)
        state = x.new_empty(_state_size(params), dtype=working if live else dtype)
        return y, state

    @torch.library.custom_op(
        "snella_seg::product_backward",
        mutates_args=(),
        schema="(Tensor grad_y, Tensor x, Tensor weight, Tensor? bias, Tensor[] params, "
        f"Tensor state, {_PLACE}, ScalarType dtype, bool[] needs) -> Tensor[]",
    )
    def _product_backward(
        grad_y: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        params: Sequence[Tensor],
        state: Tensor,
        layer: int,
        start: int,
        stop: int,
        dtype: torch.dtype,
        needs: Sequence[bool],
    ) -> list[Tensor]:
        with _under(dtype, weight), torch.no_grad():
            call = _call(layer, params, start, stop, weight)
            call.sample = TokenSample(_LAYERS[layer].token_share, state[0])
            lengths = [len(block.params) for block in call.blocks]
            made = [
                MadeBlock(block, kept, tuple(need))
                for block, kept, need in zip(
                    call.blocks,
                    _unpack(state, layer, (start, stop)),
                    grouped(needs[3:], lengths),
                    strict=True,
                )
            ]
            found = backward_product(grad_y, x, weight, bias, call, made, needs[:3])
        like = [x, weight, bias, *params]
        return [
            torch.empty_like(t, memory_format=torch.contiguous_format).copy_(g)
            if g.dtype != t.dtype or g.numel() == 1
            else g.contiguous()
            for g, t, need in zip(found, like, needs, strict=True)
            if need and g is not None and t is not None
        ]

    @_product_backward.register_fake
    def _(grad_y, x, weight, bias, params, state, layer, start, stop, dtype, needs):  # type: ignore[no-untyped-def]
        like = [x, weight, bias, *params]
        return [
            torch.empty_like(t, memory_format=torch.contiguous_format)
            for t, need in zip(like, needs, strict=True)
            if need
        ]

    def _keep(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, bias, params, *ctx.rest, _, ctx.dtype = inputs
        ctx.save_for_backward(x, weight, bias, output[1], *params)

    def _differentiate(ctx: Any, grad_y: Tensor, _: Any) -> tuple[Any, ...]:
        x, weight, bias, state, *params = ctx.saved_tensors
        needs = [*ctx.needs_input_grad[:3], *ctx.needs_input_grad[3]]
        found = iter(
            _product_backward(grad_y, x, weight, bias, params, state, *ctx.rest, ctx.dtype, needs)
        )
        grads = [next(found) if need else None for need in needs]
        return *grads[:3], grads[3:], None, None, None, None, None

    _product.register_autograd(_differentiate, setup_context=_keep)
