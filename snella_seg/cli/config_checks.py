"""Looks for slips of the pen in a config, by what is registered, before anything is built."""

import difflib
import functools
import inspect
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import Registry
from mmengine.runner import LogProcessor
from torch.utils.data import DataLoader

from ..configs import keys_at_top, type_name
from ..layers.typed_options import describe_type
from .option_ranges import OF_PLACES, range_of
from .run_checks import check_run

#: How alike a key and a known one have to be, of a class and at the top, where configs keep
#: variables of their own. With less, some of mmseg's configs would be refused.
_ALIKE, _ALIKE_AT_TOP = 0.85, 0.92
#: Parts of a config that need not name their class.
_UNNAMED = {
    "optim_wrapper": OptimWrapper,
    "log_processor": LogProcessor,
    **{f"{name}_dataloader": DataLoader for name in ("train", "val", "test")},
}
#: What parts of a config have to be that are looked into before anything is built.
_SHAPES = {
    "model.backbone.adapter": (dict,),
    "model.backbone.method": (str, dict),
    "model.train_cfg": (dict,),
    "model.test_cfg": (dict,),
    "custom_hooks.*": (dict,),
    "default_hooks.*": (dict,),
    "optim_wrapper": (dict,),
}
#: What asks for sharded models: where it stands in a config, and how its class is named.
_SHARDING_PARTS = ("strategy", "model_wrapper_cfg", "optim_wrapper")
_SHARDING = ("FSDP", "FullySharded", "DeepSpeed", "ColossalAI")


def check_config(cfg: Config) -> None:
    """Refuse types, arguments of registered classes, and keys at the top that resemble known ones.

    What no class or tool knows is ignored at best, and what resembles nothing is let pass: configs
    keep variables of their own at the top, and classes take what they pass on. Text where a class
    wants a number or a truth value is refused too, and so are values out of range
    (:mod:`snella_seg.cli.option_ranges`), sharded models, and parts that contradict each other
    (:mod:`snella_seg.cli.run_checks`).

    Raises:
        ValueError: naming class, argument and the one that was probably meant; all slips in a line.
    """
    for path, kinds in _SHAPES.items():
        _refuse_other_shape(cfg, path.split("."), kinds)
    slips = [*_top_slips(cfg), *_places_out_of_range(cfg)]
    for path, node, kind in _typed_parts(cfg):
        slips += _argument_slips(path, node, kind)
    if slips:
        raise ValueError(f"config: {'; '.join(dict.fromkeys(slips))}")
    _refuse_sharding(cfg)
    check_run(cfg)


def _refuse_other_shape(node: Any, parts: list[str], kinds: tuple, path: str = "") -> None:
    """Refuse a part of a config that is no dict, list or text where one is looked into."""
    if node is None or callable(node):
        return
    if not parts:
        if not isinstance(node, kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{path} must be a {wanted}, got {node!r}")
        return
    if parts[0] != "*":
        inner = node.get(parts[0]) if hasattr(node, "get") else None
        _refuse_other_shape(inner, parts[1:], kinds, f"{path}.{parts[0]}".lstrip("."))
        return
    if not isinstance(node, (dict, list, tuple)):
        raise ValueError(f"{path} must hold dicts, got {node!r}")
    for key, value in node.items() if hasattr(node, "items") else enumerate(node):
        _refuse_other_shape(value, parts[1:], kinds, f"{path}.{key}")


def _refuse_sharding(cfg: Config) -> None:
    """Refuse what would cut adapted matrices into pieces, however mmengine is asked for it."""
    if type_name((cfg.get("model") or {}).get("backbone") or {}) != "SnellaBackbone":
        return
    for part in _SHARDING_PARTS:
        kind = type_name(cfg.get(part) or {})
        if any(word in kind for word in _SHARDING):
            raise ValueError(
                f"{part} asks for {kind}, which shards parameters; adapters and their competition "
                "need whole ones: leave it out (--launcher then uses MMDistributedDataParallel), "
                "or shard the frozen base by model_wrapper_cfg=dict(type='SnellaFullyShard')"
            )


def _top_slips(cfg: Config) -> Iterator[str]:
    known = keys_at_top()
    for key in cfg.keys():
        meant = _meant(key, known, _ALIKE_AT_TOP)
        if meant:
            yield f"no tool reads the key {key!r}, did you mean {meant!r}?"


def _places_out_of_range(cfg: Config) -> Iterator[str]:
    for path, wanted in OF_PLACES.items():
        node: Any = cfg
        for part in path.split("."):
            node = node.get(part) if hasattr(node, "get") else None
        if node is not None and not wanted.holds(node):
            yield f"{path} must be {wanted.says}, got {node!r}"


def _argument_slips(path: str, node: dict, kind: Any) -> Iterator[str]:
    candidates = list(_classes_of(kind))
    if not candidates:
        meant = _classes_meant(kind) if isinstance(kind, str) else []
        if meant:
            either = " or ".join(map(repr, meant))
            yield f"{path}.type: no class is registered as {kind!r}, did you mean {either}?"
        return
    taken = [accepted_arguments(candidate) for candidate in candidates]
    accepted = set().union(*taken)
    for key, value in node.items():
        if key in ("type", "_scope_"):
            continue
        meant = _meant(key, accepted)
        if meant:
            name = candidates[0].__name__
            yield f"{path}: {name} has no argument {key!r}, did you mean {meant!r}?"
        hints = [arguments[key] for arguments in taken if key in arguments]
        if hints and all(_is_text_for_a_number(value, hint) for hint in hints):
            yield f"{path}.{key} must be {describe_type(hints[0])}, got {value!r}"
            continue
        wanted = next(filter(None, (range_of(one, key) for one in candidates)), None)
        if wanted and value is not None and not wanted.holds(value):
            yield f"{path}.{key} must be {wanted.says}, got {value!r}"


def is_odd(value: Any, hint: Any) -> bool:
    """Whether a value asks for a class that nobody registered, or is one where several belong."""
    if isinstance(value, dict):
        return "type" in value and not any(_classes_of(value["type"]))
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    plain = [get_origin(member) or member for member in members if member is not type(None)]
    several = all(inspect.isclass(one) and issubclass(one, Sequence) for one in plain)
    return isinstance(value, (str, int, float)) and several and str not in plain


def _is_text_for_a_number(value: Any, hint: Any) -> bool:
    """Whether text stands where a class wants a number or a truth value, and nothing like text."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    plain = [get_origin(member) or member for member in members]
    wants_number = any(member in (bool, int, float) for member in plain)
    return (
        isinstance(value, str)
        and wants_number
        and all(inspect.isclass(member) and not isinstance(value, member) for member in plain)
    )


def _meant(key: str, known: set[str], alike: float = _ALIKE) -> str | None:
    """The known name that a key resembles; None where it is one, or resembles none."""
    near = [] if key in known else difflib.get_close_matches(str(key), sorted(known), 1, alike)
    return near[0] if near else None


def _typed_parts(node: Any, path: str = "") -> Iterator[tuple[str, dict, Any]]:
    """All parts of a config that are made a class: dotted path, part, class or its name."""
    if hasattr(node, "items"):
        kind = node.get("type") or _UNNAMED.get(path)
        if path and kind is not None:
            yield path, node, kind
        pairs = list(node.items())
    elif isinstance(node, (list, tuple)):
        pairs = list(enumerate(node))
    else:
        return
    for key, value in pairs:
        yield from _typed_parts(value, f"{path}.{key}" if path else str(key))


def _classes_of(kind: Any) -> Iterator[type]:
    """The classes of a name in any registry; a class is itself."""
    if inspect.isclass(kind):
        yield kind
    if isinstance(kind, str):
        name = kind.rpartition(".")[2]
        for registry in _registries():
            found = registry.module_dict.get(name)
            if inspect.isclass(found):
                yield found


def _classes_meant(kind: str) -> list[str]:
    """Registered names that an unknown one resembles: but for capitals, else up to three."""
    known = {name for registry in _registries() for name in registry.module_dict}
    same = [name for name in known if name.lower() == kind.lower()]
    return same or difflib.get_close_matches(kind, sorted(known), 3, _ALIKE)


@functools.cache
def _registries() -> list[Registry]:
    """Those of mmengine, and of what builds on it, with all that they know."""
    import mmengine.registry
    import mmseg.registry

    modules = (mmengine.registry, mmseg.registry)
    held = [value for module in modules for value in vars(module).values()]
    found = list({id(v): v for v in held if isinstance(v, Registry)}.values())
    for registry in found:
        registry.import_from_location()
    return found


def accepted_arguments(kind: type) -> dict[str, Any]:
    """What a class takes, and of which type: itself, and its bases where it passes on the rest.

    Returns:
        name -> annotation, else the type of the default, else ``Any``.
    """
    hints: dict[str, Any] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        try:
            parameters = inspect.signature(base.__init__).parameters.values()
        except (TypeError, ValueError):  # of a builtin
            break
        for one in parameters:
            if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
                hints.setdefault(one.name, _hint(one))
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            break
    hints.pop("self", None)
    return hints


def _hint(parameter: inspect.Parameter) -> Any:
    if parameter.annotation is not parameter.empty and not isinstance(parameter.annotation, str):
        return parameter.annotation
    if parameter.default is parameter.empty or parameter.default is None:
        return Any
    return type(parameter.default)
