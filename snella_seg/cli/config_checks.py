"""Looks for slips of the pen in a config, by what is registered, before anything is built."""

import difflib
import inspect
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry
from mmengine.runner import Runner

from ..configs import RUN_KEYS

#: How alike a key and a known one have to be, of a class and at the top, where configs keep
#: variables of their own. With less, some of mmseg's configs would be refused.
_ALIKE, _ALIKE_AT_TOP = 0.85, 0.92


def check_config(cfg: Config) -> None:
    """Refuse arguments of registered classes, and keys at the top, that resemble known ones.

    What no class or tool knows is ignored at best, and what resembles nothing is let pass: configs
    keep variables of their own at the top, and classes take what they pass on.

    Raises:
        ValueError: naming class, argument and the one that was probably meant; all slips in a line.
    """
    slips = [*_top_slips(cfg)]
    for path, node in _typed_parts(cfg):
        slips += _argument_slips(path, node)
    if slips:
        raise ValueError(f"config: {'; '.join(dict.fromkeys(slips))}")


def _top_slips(cfg: Config) -> Iterator[str]:
    known = {*inspect.signature(Runner.__init__).parameters, *RUN_KEYS} - {"self", "cfg"}
    for key in cfg.keys():
        meant = _meant(key, known, _ALIKE_AT_TOP)
        if meant:
            yield f"no tool reads the key {key!r}, did you mean {meant!r}?"


def _argument_slips(path: str, node: dict) -> Iterator[str]:
    candidates = list(_classes_of(node["type"]))
    if not candidates:
        return
    accepted = set().union(*map(accepted_arguments, candidates))
    for key in node:
        meant = _meant(key, accepted)
        if meant and key not in ("type", "_scope_"):
            name = candidates[0].__name__
            yield f"{path}: {name} has no argument {key!r}, did you mean {meant!r}?"


def _meant(key: str, known: set[str], alike: float = _ALIKE) -> str | None:
    """The known name that a key resembles; None where it is one, or resembles none."""
    near = [] if key in known else difflib.get_close_matches(str(key), sorted(known), 1, alike)
    return near[0] if near else None


def _typed_parts(node: Any, path: str = "") -> Iterator[tuple[str, dict]]:
    """All parts of a config that name a class, with the dotted path to each."""
    if hasattr(node, "items"):
        if path and node.get("type") is not None:
            yield path, node
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


def _registries() -> list[Registry]:
    """Those of mmengine, and of what builds on it."""
    import mmengine.registry
    import mmseg.registry

    modules = (mmengine.registry, mmseg.registry)
    held = [value for module in modules for value in vars(module).values()]
    return list({id(v): v for v in held if isinstance(v, Registry)}.values())


def accepted_arguments(kind: type) -> set[str]:
    """Names that a class takes: its own, and those of its bases where it passes on the rest."""
    names: set[str] = set()
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        try:
            parameters = inspect.signature(base.__init__).parameters.values()
        except (TypeError, ValueError):  # of a builtin
            break
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names - {"self"}
