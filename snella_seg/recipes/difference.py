"""What one config has that another has not, as the text of a config that inherits it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

#: Stands for a part of the base in a text that is not finished.
_REFERENCE = "<base>"


def config_text(base: Mapping[str, Any], new: Mapping[str, Any], origin: str, about: str) -> str:
    """The text of a config that inherits ``base`` and is ``new``.

    Args:
        base, new: configs.
        origin: the expression of ``_base_``.
        about: the comment in its first line.

    Returns:
        Python, with only the keys that differ. What ``new`` wraps or appends to is named, as
        ``_base_.model.backbone``, not repeated.
    """
    from mmengine.config import Config

    changed = difference(base, new)
    text = Config(changed).pretty_text.strip() if changed else ""
    text = re.sub(rf"'{_REFERENCE}\*([^']+)'", r"*_base_.\1", text)
    text = re.sub(rf"'{_REFERENCE}([^']+)'", r"_base_.\1", text)
    return f"# {about}\n_base_ = {origin}\n\n{text}\n"


def difference(base: Any, new: Any, path: str = "") -> dict[str, Any]:
    """What has to be merged into a dict of a config to make it another one.

    Args:
        base, new: dicts.
        path: of ``base`` in its config.
    """
    changed: dict[str, Any] = {}
    for key, value in new.items():
        before, name = base.get(key), f"{path}.{key}".lstrip(".")
        if key in base and before == value:
            continue
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            changed[key] = _replaced(before, value, name)
        elif _is_list(before) and _is_list(value) and before and _begins(value, before):
            changed[key] = [f"{_REFERENCE}*{name}", *value[len(before) :]]
        else:
            changed[key] = value
    return changed


def _replaced(before: Mapping, value: Mapping, name: str) -> dict[str, Any]:
    """A dict that comes in place of another: merged, or whole where keys go or it is wrapped."""
    wrapped = [key for key, inner in value.items() if inner == before]
    if wrapped:
        return {"_delete_": True, **value, wrapped[0]: _REFERENCE + name}
    if before.keys() - value.keys():
        return {"_delete_": True, **value}
    return difference(before, value, name)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _begins(value: Sequence, start: Sequence) -> bool:
    return list(value[: len(start)]) == list(start)
