"""Modules whose weights carry adapters.

An adapted module keeps its class (it becomes a subclass of it), its parameters and their names:
``state_dict`` only gains ``adapters.*``. Its weight attribute reads as the effective weight
``W + delta``, so code that takes the weight instead of calling the module is adapted as well.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef

from ..engine import DeltaBlock, adapted_linear, adapted_weight, merge_deltas
from ..engine.precision import merging_loses_deltas
from . import compiling
from .adapter import Adapter


class AdaptedModule(nn.Module):
    """Mixin of modules one weight of which carries one adapter per matrix stacked in it.

    Subclasses name that weight in ``adapted_weight_name``. With ``adapters_enabled`` False the
    module is the stock module.
    """

    adapted_weight_name: str
    stock_class: type
    adapters: nn.ModuleDict
    adapter_rows: dict[str, tuple[int, int]]
    _cache: dict[Any, tuple[Any, Any]]
    _shared: tuple[Any, Any]
    handle: int  # under which compiled graphs find it

    def start_adapting(self) -> None:
        """Set up an existing module whose class has just become an adapted one."""
        self.adapters = nn.ModuleDict()
        self.adapter_rows = {}
        self.adapters_enabled = True
        self.handle = compiling.enter(self)
        self._forget()

    def stop_adapting(self) -> None:
        """Become a module of the stock class again; adapters are let go."""
        for name in ("adapters", "adapter_rows", "adapters_enabled", "handle", "_cache", "_shared"):
            delattr(self, name)
        self.__class__ = type(self).stock_class

    def add_adapter(self, name: str, rows: tuple[int, int], adapter: Adapter) -> None:
        """Let ``adapter`` act on the rows ``rows[0]:rows[1]`` of the weight.

        Raises:
            ValueError: when it drops or samples otherwise than the other adapters of this weight;
                they share one product.
        """
        for other in self.adapters.values():
            for option in ("dropout", "drop_path", "token_share"):
                if getattr(other, option) != getattr(adapter, option):
                    raise ValueError(
                        f"all adapters of a packed weight need the same {option}, got "
                        f"{getattr(other, option)} and {getattr(adapter, option)}"
                    )
        self.adapters[name] = adapter
        self.adapter_rows[name] = rows
        self._forget()

    def named_adapters(self) -> Iterator[tuple[str, Adapter]]:
        """Names and adapters, in the order in which they were added."""
        for name, adapter in self.adapters.items():
            assert isinstance(adapter, Adapter)
            yield name, adapter

    @property
    def base_parameter(self) -> nn.Parameter:
        """The frozen weight as the stock module has it: (out, in), or (out, in, 1, 1)."""
        parameter = self._parameters[self.adapted_weight_name]
        assert parameter is not None
        return parameter

    @property
    def base_weight(self) -> Tensor:
        """The frozen weight itself as a matrix, (out, in)."""
        parameter = self.base_parameter
        return parameter if parameter.ndim == 2 else parameter.flatten(1)

    @property
    def is_sharded(self) -> bool:
        """Whether this process holds a share of the weight now, by torch's ``fully_shard``.

        That looks its parameters up by name, so the weight then reads as what it is.
        """
        return hasattr(self.base_parameter, "full_tensor")

    def delta_blocks(self, start: int = 0, stop: int | None = None) -> list[DeltaBlock]:
        """The deltas within the rows ``start:stop`` of the weight, counted from ``start``.

        Raises:
            ValueError: when an adapter's matrix lies only partly within these rows.
        """
        if not self.adapters_enabled:
            return []
        stop = len(self.base_weight) if stop is None else stop
        blocks = []
        for name, adapter in self.named_adapters():
            first, last = self.adapter_rows[name]
            if last <= start or stop <= first:
                continue
            if first < start or stop < last:
                raise ValueError(
                    f"the adapter {name!r} is of the rows {first}:{last} of the weight, which lie "
                    f"only partly in {start}:{stop}; ask for whole matrices"
                )
            adapter.see(self.base_weight[first:last])
            blocks.append(adapter.delta_block(first - start, last - start))
        return blocks

    def product(
        self,
        x: Tensor,
        bias: Tensor | None,
        start: int = 0,
        stop: int | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """``x (W + deltas)^T + b`` over the rows ``start:stop`` of the weight, (..., stop - start).

        In eval without gradients the deltas are made once and cached, see
        :meth:`effective_weight`; in half precision they keep a product of their own then, too.
        ``kept`` says what drop-path keeps, for several products that are to drop the same.
        """
        if compiling.is_compiling():
            return compiling.product(self, x, bias, start, stop, kept)
        rows = slice(start, stop)
        if not self.adapters_enabled or not self.adapters:
            return F.linear(x, self.base_weight[rows], bias)
        if self.live and self.computes_products:
            return self._own_products(x, bias, start, stop)
        if self.live:
            weight = self.base_weight if start == 0 and stop is None else self.base_weight[rows]
            blocks = self.delta_blocks(start, stop)
            return adapted_linear(x, weight, bias, blocks, *self.drops, kept, self.token_share)
        if not merging_loses_deltas(self.base_weight):
            return F.linear(x, self.effective_weight()[rows], bias)
        y = F.linear(x, self.base_weight[rows], bias)
        dtype = torch.bfloat16 if y.dtype == torch.float16 else y.dtype
        with torch.autocast(x.device.type, enabled=False):
            deltas = self._cached(dtype, lambda: self._deltas(dtype))[rows]
            return y + F.linear(x.to(dtype), deltas).to(y.dtype)

    @property
    def live_drops(self) -> bool:
        """Whether something of the deltas is dropped, here and now."""
        return any(self.drops)

    @property
    def computes_products(self) -> bool:
        """Whether an adapter computes the product of its rows by itself."""
        return any(adapter.computes_product for _, adapter in self.named_adapters())

    def _own_products(self, x: Tensor, bias: Tensor | None, start: int, stop: int | None) -> Tensor:
        """The product of rows whose adapters compute it, matrix by matrix."""
        stop = len(self.base_weight) if stop is None else stop
        parts, at = [], start
        for first, last, adapter in sorted(
            ((*self.adapter_rows[name], adapter) for name, adapter in self.named_adapters()),
            key=lambda entry: entry[0],
        ):
            if last <= start or stop <= first:
                continue
            for begin, end, owner in ((at, first, None), (first, last, adapter)):
                if begin < end:
                    rows = self.base_weight[begin:end]
                    part = None if bias is None else bias[begin - start : end - start]
                    parts.append(
                        F.linear(x, rows, part) if owner is None else owner.product(x, rows, part)
                    )
            at = last
        if at < stop:
            part = None if bias is None else bias[at - start : stop - start]
            parts.append(F.linear(x, self.base_weight[at:stop], part))
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]

    @property
    def drops(self) -> tuple[float, float]:
        """Probabilities of dropout and drop-path of the deltas, here and now."""
        for _, adapter in self.named_adapters() if self.training else ():
            return adapter.dropout, adapter.drop_path
        return 0.0, 0.0

    @property
    def token_share(self) -> float:
        """Share of the tokens by which the deltas' gradient is estimated, here and now."""
        for _, adapter in self.named_adapters() if self.training else ():
            return 1.0 if adapter.takes_all_tokens else adapter.token_share
        return 1.0

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
        if compiling.is_compiling():
            return compiling.effective_weight(self)
        if self.is_sharded:
            return self.base_parameter
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
        rows, columns = self.base_weight.shape
        return merge_deltas(None, (rows, columns), self.delta_blocks())[0].to(dtype)

    def _seen(self) -> list[tuple[int, int, bool]]:
        tensors: list[Tensor] = [self.base_weight]
        for _, adapter in self.named_adapters():
            tensors += [*adapter.params, adapter.sparsity]
        return [(t.data_ptr(), t._version, t.requires_grad) for t in tensors]

    def _cached(self, key: Any, make: Callable[[], Tensor]) -> Tensor:
        version = self._seen()
        entry = self._cache.get(key, (None, None))
        if entry[0] != version:
            entry = self._cache[key] = (version, make())
        return entry[1]

    def _forget(self) -> None:
        self._cache, self._shared = {}, (None, None)

    def train(self, mode: bool = True) -> "AdaptedModule":
        self._forget()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}, "_shared": (None, None)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.handle = compiling.enter(self)  # a copy is found as itself
