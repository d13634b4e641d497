"""Constructors that refuse options of another type than their annotations say."""

import functools
import inspect
from collections.abc import Callable, Sequence
from types import UnionType
from typing import Any, ParamSpec, Union, get_args, get_origin

P = ParamSpec("P")


def typed_options(init: Callable[P, None]) -> Callable[P, None]:
    """Let a constructor refuse values that are of another type than its annotations say.

    A string for a boolean is true, and a boolean is a number, as far as Python goes; configs and
    command lines bring both. Annotations of this package are plain: ``bool``, ``int``, ``float``,
    ``str``, ``dict``, ``Sequence[str]`` and unions of them; what else there is passes.

    Args:
        init: an ``__init__`` with annotations.

    Returns:
        The same, which raises ValueError naming option, type and value.
    """
    signature = inspect.signature(init)
    named = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }

    @functools.wraps(init)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        for name, value in signature.bind_partial(*args, **kwargs).arguments.items():
            hint = named.get(name, inspect.Parameter.empty)
            if hint is not inspect.Parameter.empty and not _fits(value, hint):
                raise ValueError(f"{name} must be {describe_type(hint)}, got {value!r}")
        init(*args, **kwargs)

    return wrapper


def describe_type(hint: Any) -> str:
    """An annotation as users read it: ``int | None``, ``Sequence[str]``."""
    says = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
    return says.replace("collections.abc.", "").replace("typing.", "")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotation, as far as that is one of the plain ones."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if hint is None or hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and (hint is float or isinstance(value, int))
    if hint is str:
        return isinstance(value, str)
    if hint is dict or origin is dict:
        return hasattr(value, "keys")
    if origin in (Sequence, list, tuple) and get_args(hint) == (str,):
        return isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value)
    return True
