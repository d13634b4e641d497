"""A model's state, parted into tasks and frozen bases."""

from collections.abc import Iterator

from torch import Tensor, nn

from ..loading.header import HEADER, encode_header, frozen_state, make_header
from .backbone import SnellaBackbone


def find_wrappers(model: nn.Module) -> Iterator[tuple[str, SnellaBackbone]]:
    """Prefix in the state dict, and module, of each SnellaBackbone within a model."""
    for name, module in model.named_modules():
        if isinstance(module, SnellaBackbone):
            yield (f"{name}." if name else ""), module


def find_wrapper(model: nn.Module) -> tuple[str, SnellaBackbone]:
    """The only SnellaBackbone of a model, and its prefix in the state dict.

    Raises:
        ValueError: when there is none, or more than one.
    """
    found = list(find_wrappers(model))
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__} holds {len(found)} SnellaBackbones where one is expected; "
            "give the segmentor of a config whose backbone is a SnellaBackbone"
        )
    return found[0]


def task_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's state without its frozen bases: adapters, trained extras of the backbone, heads."""
    state = dict(model.state_dict())
    for prefix, wrapper in find_wrappers(model):
        for name in frozen_state(wrapper):
            state.pop(f"{prefix}backbone.{name}", None)
    return state


def strip_frozen(state: dict[str, Tensor], model: nn.Module, outer: str = "") -> bool:
    """Take the frozen bases out of a model's state dict and put their headers in.

    A base that came from no known file stays, since nobody could bring it back.

    Args:
        state: of the model, changed in place.
        model: holds any number of SnellaBackbones.
        outer: how the model's names begin in the state.

    Returns:
        Whether all that is frozen could be left out.
    """
    complete = True
    for prefix, wrapper in find_wrappers(model):
        if wrapper.base_source is None or wrapper.merged:
            complete = False
            continue
        frozen = frozen_state(wrapper)
        if not any(value.is_floating_point() for value in frozen.values()):
            continue  # all of it is trained, so the checkpoint stands by itself
        for name in frozen:
            state.pop(f"{outer}{prefix}backbone.{name}", None)
        state[outer + prefix + HEADER] = encode_header(make_header(wrapper))
    return complete
