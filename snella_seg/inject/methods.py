"""What can be tuned in a backbone, and how: SNELLA and what it is compared with.

One key of a config chooses, ``model.backbone.method``; model, data, heads, schedule and tools stay
the same. A method of your own is an entry, ``METHODS["mine"] = Method(...)``, and an adapter class
where its deltas are made otherwise.
"""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..layers import Adapter, PeftAdapter, SnellaAdapter
from .freeze import OUTPUT_NORMS

ALLOCATIONS = ("competition", "uniform", "fixed")


@dataclass(frozen=True)
class Method:
    """What a name stands for.

    Args:
        label: for tables and plots.
        about: one line.
        adapts: whether matrices get adapters.
        fixed: options of the adapter that make the method what it is; others are refused.
        defaults: options of the adapter where the config says nothing.
        foreign: options of the adapter that have no meaning here, or another one than for SNELLA;
            comparisons leave them out when they take over a config.
        trainable: base parameters that it trains; None for those of the config.
        allocation: what :class:`snella_seg.hooks.SparsityAllocationHook` does: ``'competition'``
            (the scheduled budget, shared by importance), ``'uniform'`` (the scheduled budget, each
            matrix as dense as the others), ``'fixed'`` (the target sparsity in each matrix, from
            the first iteration on), or None, nothing.
        adapter_class: of its adapters.
    """

    label: str
    about: str
    adapts: bool = True
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    foreign: tuple[str, ...] = ()
    trainable: tuple[str, ...] | None = None
    allocation: str | None = "competition"
    adapter_class: type[Adapter] = SnellaAdapter


METHODS = {
    "full": Method(
        "full fine-tuning",
        "every weight of the backbone is trained",
        adapts=False,
        trainable=("*",),
        allocation=None,
    ),
    "frozen": Method(
        "frozen",
        "nothing of the backbone is trained, only the heads",
        adapts=False,
        trainable=(OUTPUT_NORMS,),
        allocation=None,
    ),
    "bitfit": Method(
        "BitFit",
        "the biases of the backbone are trained (arXiv 2106.10199)",
        adapts=False,
        trainable=("*bias", OUTPUT_NORMS),
        allocation=None,
    ),
    "lora": Method(
        "LoRA",
        "two thin products beside each frozen one (arXiv 2106.09685); scale is lora_alpha / rank",
        fixed=dict(kernel="linear", sparsifier="none", token_share=1.0),
        defaults=dict(scale=1.0),
        foreign=("initial_sparsity", "scale", "spread"),
        allocation=None,
    ),
    "snell": Method(
        "SNELL",
        "the distance kernel, the same sparsity in all matrices (arXiv 2411.01800)",
        fixed=dict(kernel="distance", sparsifier="soft"),
        allocation="fixed",
    ),
    "peft": Method(
        "PEFT",
        "a tuner of Hugging Face's PEFT on the same matrices, as config='ShiraConfig'",
        foreign=tuple(inspect.signature(SnellaAdapter).parameters)[2:],
        allocation=None,
        adapter_class=PeftAdapter,
    ),
    "snella": Method("SNELLA", "adapters whose matrices compete (arXiv 2510.24037)"),
    "snella_v2": Method(
        "SNELLA v2",
        "the same competition; distances are centred, and magnitudes relative to their mean",
        defaults=dict(kernel="centred", sparsifier="normalised"),
        foreign=("kernel", "scale", "sparsifier", "spread"),
    ),
}

#: Names that methods had before version 0.2 -> what they are now.
_FORMER = {
    "snella_uniform": "snella:allocation=uniform",
    "snella_fixed": "snella:allocation=fixed",
    "snella_dense": "snella:target_sparsity=0",
    "snella_weighted": "snella:sparsifier=weighted",
    "snella_soft": "snella:sparsifier=soft",
    "snella_hard": "snella:sparsifier=hard",
    "snella_distance": "snella:kernel=distance",
    "snella_linear": "snella:kernel=linear",
    "snella_sensitivity": "snella:importance=sensitivity",
    "snella_magnitude": "snella:importance=magnitude",
    "snella_frobenius": "snella:importance=frobenius",
}


def get_method(name: str) -> Method:
    """Look a method up.

    Raises:
        ValueError: when there is none of that name; near names are listed.
    """
    if name in METHODS:
        return METHODS[name]
    if name in _FORMER:
        option = _FORMER[name].partition(":")[2]
        raise ValueError(
            f"method {name!r} is now a variant: {_FORMER[name]} in comparisons, {option} as an "
            "option of adapter or SparsityAllocationHook in a config of method='snella'"
        )
    near = difflib.get_close_matches(str(name), METHODS, cutoff=0.4) or METHODS
    raise ValueError(f"unknown method {name!r}; choose one of {', '.join(near)}")


def method_name(backbone: Mapping[str, Any]) -> str:
    """The name of the method that a config's ``model.backbone`` asks for, by name or by a dict."""
    method = backbone.get("method", "snella")
    return method if isinstance(method, str) else method.get("type", "snella")


def settle(
    name: str,
    adapter: Mapping[str, Any] | None,
    targets: str | Sequence[str],
    trainable: str | Sequence[str],
) -> tuple[dict[str, Any], str | Sequence[str], str | Sequence[str]]:
    """Put a method's settings and a config's together.

    Args:
        name: of the method.
        adapter, targets, trainable: as the config has them; None and ``'auto'`` where it says
            nothing.

    Returns:
        The adapter's options, targets and trainable parameters that hold.

    Raises:
        ValueError: when the config asks for something else than the method is.
    """
    method, options = get_method(name), dict(adapter or {})
    if not method.adapts:
        given = [f"adapter.{key}" for key in options]
        given += ["targets"] if targets != "auto" and list(targets) else []
        if given:
            raise ValueError(
                f"method={name!r} adapts no matrix, so {', '.join(given)} would have no effect; "
                "leave out adapter and targets of model.backbone (adapter=None, targets='auto')"
            )
        targets = []
    for key, value in method.fixed.items():
        if options.get(key, value) != value:
            raise ValueError(
                f"method={name!r} has {key} {value!r}, got adapter.{key}={options[key]!r}; leave "
                "it out of model.backbone.adapter, or choose another method"
            )
    if method.trainable is not None:
        if trainable != "auto":
            raise ValueError(
                f"method={name!r} says itself what is trained, got trainable={trainable!r}; leave "
                "it out of model.backbone (trainable='auto')"
            )
        trainable = method.trainable
    return {**method.defaults, **options, **method.fixed}, targets, trainable


def allocation_mode(name: str, method: Method, wanted: str | None) -> str | None:
    """What the allocation hook does: the method's way, unless that leaves the choice open.

    Args:
        name, method: of the backbone.
        wanted: ``allocation`` of the hook; None for what the method asks for.

    Returns:
        One of :data:`ALLOCATIONS`, or None where there is no sparsity to allocate.

    Raises:
        ValueError: when the hook asks for another way than the method has.
    """
    if wanted is None or method.allocation is None or wanted == method.allocation:
        return method.allocation
    if method.allocation != "competition":
        raise ValueError(
            f"method={name!r} has allocation {method.allocation!r}, got allocation={wanted!r} of "
            "SparsityAllocationHook; leave it out, or choose another method"
        )
    return wanted
