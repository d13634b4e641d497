"""Give matrices of a model adapters, and take them off again; tell what belongs to adapters."""

import contextlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import AdaptedModule, Adapter, SnellaAdapter, adapted_class
from .targets import find_matrices, near_matches, select_matrices


def make_adapters(
    model: nn.Module,
    adapter: Mapping[str, Any] | None = None,
    targets: str | Iterable[str] = "auto",
    adapter_class: type[Adapter] = SnellaAdapter,
) -> dict[str, Adapter]:
    """Make an adapter for every chosen matrix of ``model``, which is left as it is.

    Args:
        model: the backbone.
        adapter: arguments of the adapter's class (rank, kernel, ...).
        targets: see :func:`select_matrices`.
        adapter_class: takes in_features and out_features, then these arguments.

    Returns:
        Matrix name -> adapter, in the order of the modules, for :func:`attach_adapters`.

    Raises:
        ValueError: on unknown arguments or targets.
    """
    options = dict(adapter or {})
    known = adapter_options(adapter_class)
    for key in options:
        if known is not None and key not in known:
            raise ValueError(f"unknown adapter option {key!r}{near_matches(key, known)}")
    matrices = {matrix.name: matrix for matrix in select_matrices(model, targets)}
    shapes = {name: (m.stop - m.start, m.in_features) for name, m in matrices.items()}
    made = adapter_class.for_shapes(shapes, **options)
    for name, matrix in matrices.items():
        module, _, weight_name = matrix.weight.rpartition(".")
        weight = model.get_submodule(module)._parameters[weight_name]
        made[name].to(weight.device, torch.float64 if weight.dtype == torch.float64 else None)
    return made


def adapter_options(adapter_class: type[Adapter] = SnellaAdapter) -> list[str] | None:
    """Names of the arguments of an adapter's class, without those of the matrix; None for any."""
    parameters = inspect.signature(adapter_class).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return [*parameters][2:]


def attach_adapters(model: nn.Module, adapters: Mapping[str, Adapter]) -> None:
    """Let adapters act on the matrices that they are named after, in place.

    The adapted modules stay where they are and keep their parameters and the names of these.

    Args:
        model: the backbone; must not carry adapters.
        adapters: matrix name -> adapter, see :func:`make_adapters`.

    Raises:
        ValueError: when the model is adapted already, or lacks a matrix.
    """
    if list_adapters(model):
        raise ValueError(f"{type(model).__name__} carries SNELLA adapters already; wrap it once")
    matrices = {matrix.name: matrix for matrix in find_matrices(model)}
    unknown = [name for name in adapters if name not in matrices]
    if unknown:
        near = near_matches(unknown[0], matrices)
        raise ValueError(f"{type(model).__name__} has no matrix {unknown[0]!r}{near}")
    for name, adapter in adapters.items():
        matrix = matrices[name]
        module = _adapted(model.get_submodule(matrix.module))
        module.add_adapter(matrix.kind, (matrix.start, matrix.stop), adapter)
    for module in model.modules():
        # The stock attention reads its output projection's weight and never calls it.
        if isinstance(module, nn.MultiheadAttention) and isinstance(module.out_proj, AdaptedModule):
            _adapted(module)


def detach_adapters(model: nn.Module) -> dict[str, Adapter]:
    """Take all adapters off a model, whose modules are stock modules again.

    Returns:
        Matrix name -> adapter, for :func:`attach_adapters`.
    """
    adapters = list_adapters(model)
    for module in [m for m in model.modules() if isinstance(m, AdaptedModule)]:
        module.stop_adapting()
    return adapters


def add_adapters(
    model: nn.Module,
    adapter: Mapping[str, Any] | None = None,
    targets: str | Iterable[str] = "auto",
    adapter_class: type[Adapter] = SnellaAdapter,
) -> dict[str, Adapter]:
    """Give every chosen matrix of ``model`` an adapter: make them and attach them, in place.

    Arguments, result and errors are those of :func:`make_adapters` and :func:`attach_adapters`.
    """
    adapters = make_adapters(model, adapter, targets, adapter_class)
    attach_adapters(model, adapters)
    return adapters


def _adapted(module: nn.Module) -> AdaptedModule:
    """Turn a module into an adapted one, in place, unless it is one."""
    if not isinstance(module, AdaptedModule):
        module.__class__ = adapted_class(type(module))
        assert isinstance(module, AdaptedModule)
        module.start_adapting()
    return module


def list_adapters(model: nn.Module) -> dict[str, Adapter]:
    """Matrix name -> adapter of a model, in the order of its modules."""
    return {
        f"{name}.{kind}" if name else kind: adapter
        for name, module in model.named_modules()
        if isinstance(module, AdaptedModule)
        for kind, adapter in module.adapters.items()
    }


def adapted_weights(model: nn.Module) -> Iterator[tuple[str, AdaptedModule, dict[str, slice]]]:
    """All weights that carry adapters: their name, their module, and matrix name -> its rows."""
    for name, module in model.named_modules():
        if isinstance(module, AdaptedModule) and module.adapters:
            start = f"{name}." if name else ""
            rows = {f"{start}{kind}": slice(*span) for kind, span in module.adapter_rows.items()}
            yield start + module.adapted_weight_name, module, rows


def set_adapters_enabled(model: nn.Module, enabled: bool) -> None:
    """Switch all adapters of a model on or off; off, it computes what the stock model does."""
    for module in model.modules():
        if isinstance(module, AdaptedModule):
            module.adapters_enabled = enabled


@contextlib.contextmanager
def adapters_disabled(model: nn.Module) -> Iterator[None]:
    """Within this context the model is the stock model, and its weights read as such."""
    before = [(m, m.adapters_enabled) for m in model.modules() if isinstance(m, AdaptedModule)]
    set_adapters_enabled(model, False)
    try:
        yield
    finally:
        for module, enabled in before:
            module.adapters_enabled = enabled


def adapter_keys(model: nn.Module) -> set[str]:
    """Names of all parameters and buffers of a model that belong to adapters."""
    return {
        f"{name}.adapters.{key}" if name else f"adapters.{key}"
        for name, module in model.named_modules()
        if isinstance(module, AdaptedModule)
        for key in module.adapters.state_dict()
    }


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's state dict without what belongs to adapters."""
    ours = adapter_keys(model)
    return {name: value for name, value in model.state_dict().items() if name not in ours}


_ADAPTER_KEY = re.compile(r"(^|\.)adapters\.[^.]+\.([^.]+|layer\..+)$")


def is_adapter_key(name: str) -> bool:
    """Whether a name in a file looks like an adapter's.

    Only a guess, for states without a model at hand; :func:`adapter_keys` asks the model.
    """
    return _ADAPTER_KEY.search(name) is not None
