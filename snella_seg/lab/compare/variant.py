"""A method with options of its own: ``snella:scale=1,target_sparsity=0.9``."""

import ast
import inspect
from dataclasses import dataclass

from mmengine.config import Config

from ...configs import type_name
from ...hooks import SparsityAllocationHook
from ...inject import Method, adapter_options, get_method, settle

#: What mmengine takes of a hook's config for itself.
_OF_HOOKS = ("type", "priority", "_scope_")


@dataclass(frozen=True)
class Variant:
    """A method and the options that go before those of the config.

    Args:
        name: of the method.
        adapter: options of :class:`snella_seg.layers.SnellaAdapter`.
        hook: options of :class:`snella_seg.hooks.SparsityAllocationHook`.
    """

    name: str
    adapter: tuple[tuple[str, object], ...] = ()
    hook: tuple[tuple[str, object], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Variant":
        """Read ``METHOD`` or ``METHOD:OPTION=VALUE,OPTION=VALUE``.

        Raises:
            ValueError: on unknown methods or options, options without a value, and options that
                the method sets by itself.
        """
        name, _, options = text.partition(":")
        method = get_method(name)
        parts: dict[str, list] = {"adapter": [], "hook": []}
        for option in filter(None, options.split(",")):
            key, equals, value = option.partition("=")
            if not equals or not value:
                raise ValueError(f"{text!r}: write options as {key or 'OPTION'}=VALUE")
            if key in method.fixed:
                raise ValueError(f"{text!r}: method {name} sets {key} by itself")
            owner = _owner(text, method, key)
            _refuse_idle(text, method, owner, key)
            parts[owner].append((key, _value(value)))
        return cls(name, *(tuple(part) for part in parts.values()))

    @property
    def method(self) -> Method:
        return get_method(self.name)

    @property
    def label(self) -> str:
        """For tables and plots."""
        options = ", ".join(f"{key} {value}" for key, value in (*self.adapter, *self.hook))
        return f"{self.method.label} ({options})" if options else self.method.label

    def apply(self, cfg: Config) -> None:
        """Set the method and its options in a config.

        Raises:
            ValueError: on an option of the allocation where the config has no such hook, and on
                values, of the variant or the config, that adapter or hook refuse.
        """
        backbone, method = cfg.model.backbone, self.method
        backbone.method = self.name
        taken = {k: v for k, v in (backbone.get("adapter") or {}).items() if self._takes(k)}
        backbone.adapter = {**taken, **dict(self.adapter)} or None
        if not method.adapts:
            backbone.targets = "auto"
        if method.trainable is not None:
            backbone.trainable = "auto"
        hooks = [
            hook
            for hook in cfg.get("custom_hooks") or []
            if type_name(hook) == SparsityAllocationHook.__name__
        ]
        if self.hook and not hooks:
            raise ValueError(
                f"{self.hook[0][0]} belongs to SparsityAllocationHook, which custom_hooks lacks"
            )
        for hook in hooks:
            if method.allocation != "competition":
                hook.pop("allocation", None)
            hook.update(dict(self.hook))
            SparsityAllocationHook(**{k: v for k, v in hook.items() if k not in _OF_HOOKS})
        if method.adapts:
            options, *_ = settle(self.name, backbone.adapter, "auto", "auto")
            method.adapter_class.for_shapes({}, **options)

    def _takes(self, option: str) -> bool:
        """Whether an option of the config's adapter means the same for this method."""
        method = self.method
        return method.adapts and option not in (*method.fixed, *method.foreign)


def _refuse_idle(text: str, method: Method, owner: str, key: str) -> None:
    """Refuse an option that a method makes no use of."""
    idle = owner == "adapter" and not method.adapts
    idle |= owner == "hook" and method.allocation is None
    idle |= key == "allocation" and method.allocation != "competition"
    if idle:
        raise ValueError(f"{text!r}: {key} has no effect on {method.label}")


def _owner(text: str, method: Method, key: str) -> str:
    """Whose option it is."""
    known = {
        "adapter": adapter_options(method.adapter_class),
        "hook": [*inspect.signature(SparsityAllocationHook).parameters],
    }
    if known["adapter"] is None:  # it takes any
        return "adapter"
    for name, options in known.items():
        if key in options:
            return name
    choices = ", ".join(option for options in known.values() for option in options)
    raise ValueError(f"{text!r}: unknown option {key!r}; choose one of {choices}")


def _value(text: str):
    """A number, True, False or None as such, all else as text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
