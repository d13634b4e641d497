"""Linear and attention layers whose weights carry adapters.

An adapted module keeps its class (it becomes a subclass of it), its parameters and their names:
``state_dict`` only gains ``adapters.*``. Its weight attribute reads as the effective weight
``W + delta``, so code that takes the weight instead of calling the module is adapted as well.
"""

import functools
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef

from ..functional import DeltaBlock, adapted_linear, adapted_weight
from ..functional.blocks import merge_deltas
from ..functional.precision import merging_loses_deltas
from .adapter import SnellaAdapter


class AdaptedModule(nn.Module):
    """Mixin of modules one weight of which carries one adapter per matrix stacked in it.

    Subclasses name that weight in ``adapted_weight_name``. With ``adapters_enabled`` False the
    module is the stock module.
    """

    adapted_weight_name: str

    def start_adapting(self) -> None:
        """Set up an existing module whose class has just become an adapted one."""
        self.adapters = nn.ModuleDict()
        self.adapter_rows: dict[str, tuple[int, int]] = {}
        self.adapters_enabled = True
        self._forget()

    def stop_adapting(self) -> None:
        """Become a module of the stock class again; adapters are let go."""
        for name in ("adapters", "adapter_rows", "adapters_enabled", "_cache", "_shared"):
            delattr(self, name)
        self.__dict__.pop("returns_weights", None)
        self.__class__ = type(self).stock_class

    def add_adapter(self, name: str, rows: tuple[int, int], adapter: SnellaAdapter) -> None:
        """Let ``adapter`` act on the rows ``rows[0]:rows[1]`` of the weight."""
        self.adapters[name] = adapter
        self.adapter_rows[name] = rows
        self._forget()

    @property
    def base_weight(self) -> nn.Parameter:
        """The frozen weight itself, (out, in)."""
        return self._parameters[self.adapted_weight_name]

    def delta_blocks(self, start: int = 0, stop: int | None = None) -> list[DeltaBlock]:
        """The deltas within the rows ``start:stop`` of the weight, counted from ``start``."""
        if not self.adapters_enabled:
            return []
        stop = len(self.base_weight) if stop is None else stop
        blocks = []
        for name, adapter in self.adapters.items():
            first, last = self.adapter_rows[name]
            if start <= first and last <= stop:
                recipe = (adapter.rule, adapter.current_sparsity(), adapter.params, adapter.bracket)
                blocks.append(DeltaBlock(first - start, last - start, *recipe))
        return blocks

    def product(
        self, x: Tensor, bias: Tensor | None, start: int = 0, stop: int | None = None
    ) -> Tensor:
        """``x (W + deltas)^T + b`` over the rows ``start:stop`` of the weight, (..., stop - start).

        In eval without gradients the deltas are made once and cached, see
        :meth:`effective_weight`; in half precision they keep a product of their own then, too.
        """
        rows = slice(start, stop)
        if not self.adapters_enabled or not self.adapters:
            return F.linear(x, self.base_weight[rows], bias)
        if self.live:
            options = next(iter(self.adapters.values()))
            drops = (options.dropout, options.drop_path) if self.training else (0.0, 0.0)
            weight = self.base_weight if start == 0 and stop is None else self.base_weight[rows]
            return adapted_linear(x, weight, bias, self.delta_blocks(start, stop), *drops)
        if not merging_loses_deltas(self.base_weight):
            return F.linear(x, self.effective_weight()[rows], bias)
        y = F.linear(x, self.base_weight[rows], bias)
        dtype = torch.bfloat16 if y.dtype == torch.float16 else y.dtype
        with torch.autocast(x.device.type, enabled=False):
            deltas = self._cached(dtype, lambda: self._deltas(dtype))[rows]
            return y + F.linear(x.to(dtype), deltas).to(y.dtype)

    @property
    def live(self) -> bool:
        """Whether deltas have to be made anew in every pass: in training, or for gradients."""
        return self.training or torch.is_grad_enabled()

    def effective_weight(self) -> Tensor:
        """``W + deltas``, made in single precision at least.

        In eval without gradients it is made once and cached. The cache follows in-place changes
        of the weight, the factors and the sparsity, and is dropped by every call of ``train()``
        and ``eval()``. Otherwise it is made once per forward, however often it is read: for as
        long as a graph holds it, and nothing has changed.
        """
        if not self.adapters_enabled or not self.adapters:
            return self.base_weight
        if not self.live:
            return self._cached("weight", self._merge)
        version = (self._seen(), torch.is_grad_enabled())
        known = self._shared[1]() if self._shared[0] == version else None
        if known is None:
            known = self._merge()
            self._shared = (version, TensorWeakRef(known))
        return known

    def _merge(self) -> Tensor:
        if merging_loses_deltas(self.base_weight):
            warnings.warn(
                f"the weight of {type(self).__name__} is read for low-precision products; whoever "
                "multiplies with it rounds most of the SNELLA delta away. Call the module instead",
                stacklevel=4,
            )
        return adapted_weight(self.base_weight, self.delta_blocks())

    def _deltas(self, dtype: torch.dtype) -> Tensor:
        return merge_deltas(None, self.base_weight.shape, self.delta_blocks())[0].to(dtype)

    def _seen(self) -> list:
        tensors = [self.base_weight]
        for adapter in self.adapters.values():
            tensors += [*adapter.params, adapter.sparsity]
        return [(t.data_ptr(), t._version, t.requires_grad) for t in tensors]

    def _cached(self, key, make) -> Tensor:
        version = self._seen()
        entry = self._cache.get(key, (None, None))
        if entry[0] != version:
            entry = self._cache[key] = (version, make())
        return entry[1]

    def _forget(self) -> None:
        self._cache: dict = {}
        self._shared: tuple = (None, None)

    def train(self, mode: bool = True):
        self._forget()
        return super().train(mode)

    def __getstate__(self):
        return {**self.__dict__, "_cache": {}, "_shared": (None, None)}

    def __reduce_ex__(self, protocol):
        # The class is made at run time, so pickle and deepcopy rebuild it from its stock class.
        return _rebuild, (type(self).stock_class,), self.__getstate__()


class AdaptedLinear(AdaptedModule):
    """Mixin for ``nn.Linear`` and its subclasses: ``y = x (W + deltas)^T + b``.

    A packed projection (qkv) carries one adapter for each matrix stacked in it.
    """

    adapted_weight_name = "weight"

    @property
    def weight(self) -> Tensor:
        return self.effective_weight()

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.bias) if self.calls_plain_linear else super().forward(x)

    @property
    def calls_plain_linear(self) -> bool:
        """Whether the stock forward is ``F.linear`` and nothing else (mmcv's is, too)."""
        stock = type(self).stock_class
        return stock.forward is nn.Linear.forward or stock.__module__ == "mmcv.cnn.bricks.wrappers"


class AdaptedMultiheadAttention(AdaptedModule):
    """Mixin for ``nn.MultiheadAttention``: q, k and v are three matrices of ``in_proj_weight``.

    The projections run through :func:`snella_seg.functional.adapted_linear`, the attention through
    ``scaled_dot_product_attention`` unless the attention weights are asked for.
    ``returns_weights=False`` says that the caller discards them (as mmcv's MultiheadAttention
    does), whatever ``need_weights`` it passes.
    """

    adapted_weight_name = "in_proj_weight"
    returns_weights = True

    @property
    def in_proj_weight(self) -> Tensor:
        return self.effective_weight()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ):
        special = self.bias_k is not None or self.add_zero_attn or is_causal or query.ndim != 3
        if special:  # rare: the stock forward reads the effective weights
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask,
                average_attn_weights, is_causal,
            )  # fmt: skip
        q, k, v = (self._split_heads(t) for t in self._project(query, key, value))
        mask = _additive_mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        if need_weights and self.returns_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, dropout) if dropout else weights
            out = weights @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
            weights = None
        out = self.out_proj(out.transpose(1, 2).flatten(2))  # (N, L, E)
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _project(self, query, key, value):
        """Project to q, k and v, each (N, L, E); one product where they share their input."""
        width, bias = self.embed_dim, self.in_proj_bias
        inputs = (query, key, value)
        if not self.batch_first:
            inputs = tuple(t.transpose(0, 1) for t in inputs)
        if _same(query, key) and _same(query, value):
            return self.product(inputs[0], bias).chunk(3, dim=-1)
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        rows = ((i * width, (i + 1) * width) for i in range(3))
        return [self.product(t, b, *r) for t, b, r in zip(inputs, biases, rows, strict=True)]

    def _split_heads(self, x: Tensor) -> Tensor:
        """(N, L, E) -> (N, heads, L, E / heads)."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same values of the same graph, if seen through two views."""
    return a is b or (
        a.data_ptr() == b.data_ptr()
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.requires_grad == b.requires_grad
        and a._base is not None
        and a._base is b._base
    )


def _additive_mask(attn_mask, key_padding_mask, q: Tensor) -> Tensor | None:
    """Both masks of ``nn.MultiheadAttention`` as one that adds to the (N, heads, L, S) scores."""

    def additive(mask):
        if mask.dtype != torch.bool:
            return mask.to(q.dtype)
        return torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, float("-inf"))

    total = None
    if attn_mask is not None:
        total = additive(attn_mask)
        if total.ndim == 3:  # (N * heads, L, S)
            total = total.unflatten(0, q.shape[:2])
    if key_padding_mask is not None:
        padding = additive(key_padding_mask)[:, None, None, :]
        total = padding if total is None else total + padding
    return total


@functools.cache
def adapted_class(stock_class: type) -> type:
    """The subclass of a stock class that carries adapters.

    Raises:
        TypeError: if modules of that class cannot carry any.
    """
    if issubclass(stock_class, nn.MultiheadAttention):
        mixin = AdaptedMultiheadAttention
    elif issubclass(stock_class, nn.Linear):
        mixin = AdaptedLinear
    else:
        raise TypeError(f"only linear and attention modules can be adapted, got {stock_class}")
    name = f"Adapted{stock_class.__name__}"
    return type(name, (mixin, stock_class), {"stock_class": stock_class})


def _rebuild(stock_class: type) -> AdaptedModule:
    cls = adapted_class(stock_class)
    return cls.__new__(cls)
