"""From a stock class to the subclass of it that carries adapters."""

import functools
from typing import Any

from torch import nn

from .attention import AdaptedMultiheadAttention
from .convolution import AdaptedConv2d
from .linear import AdaptedLinear
from .module import AdaptedModule


@functools.cache
def adapted_class(stock_class: type) -> type:
    """The subclass of a stock class that carries adapters.

    Raises:
        TypeError: if modules of that class cannot carry any.
    """
    mixin: type[AdaptedModule]
    if issubclass(stock_class, nn.MultiheadAttention):
        mixin = AdaptedMultiheadAttention
    elif issubclass(stock_class, nn.Linear):
        mixin = AdaptedLinear
    elif issubclass(stock_class, nn.Conv2d):
        mixin = AdaptedConv2d
    else:
        raise TypeError(
            f"only linear, attention and 1x1 convolution modules can be adapted, got {stock_class}"
        )
    name = f"Adapted{stock_class.__name__}"
    return type(name, (mixin, stock_class), {"stock_class": stock_class, "__reduce_ex__": _reduce})


def _reduce(module: AdaptedModule, protocol: int) -> tuple[Any, ...]:
    """For pickle and deepcopy: the class is made at run time, so it is made again."""
    return _rebuild, (type(module).stock_class,), module.__getstate__()


def _rebuild(stock_class: type) -> AdaptedModule:
    cls: Any = adapted_class(stock_class)
    return cls.__new__(cls)
