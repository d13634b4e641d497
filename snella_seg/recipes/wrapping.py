"""Turn a stock config into one whose backbone is adapted."""

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..configs import replace_type, type_name

if TYPE_CHECKING:
    from mmengine.config import Config

#: Constructors whose layer decay ours takes over.
_LAYER_DECAY = ("LearningRateDecayOptimizerConstructor", "LayerDecayOptimizerConstructor")
#: Their keys of paramwise_cfg that ours does without.
_THEIRS = ("num_layers", "layer_decay_rate", "decay_type")
_REGISTER = "snella_seg.register"


def wrap_config(
    cfg: "Config",
    *,
    method: str | dict = "snella_v2",
    adapter: dict | None = None,
    targets: str | Sequence[str] = "auto",
    target_sparsity: float = 0.8,
    lr_mult: float = 10.0,
    sync_bn: bool = True,
    notes: list[str] | None = None,
) -> "Config":
    """A config in which the backbone of another one is adapted and all else stays.

    Args:
        cfg: of a segmentor with a stock backbone; left as it is.
        method, adapter, targets: of :class:`snella_seg.models.SnellaBackbone`.
        target_sparsity: of :class:`snella_seg.hooks.SparsityAllocationHook`.
        lr_mult: the learning rate of factors as a multiple of the optimizer's.
        sync_bn: False puts BN where the model has SyncBN, for one GPU or none.
        notes: takes a line for each thing that was done, or that is worth knowing.

    Returns:
        A new config. Imports and hooks of the old one stay, and ours come behind them. Layer decay
        and rules for parameters hold on (:class:`snella_seg.optim.SnellaOptimWrapperConstructor`).

    Raises:
        ValueError: when there is no backbone to wrap, or it is wrapped already.
    """
    said = [] if notes is None else notes
    new = copy.deepcopy(cfg)
    _wrap_backbone(new, dict(method=method, adapter=adapter, targets=targets), said)
    _add_import(new)
    _add_hooks(new, target_sparsity, said)
    if new.get("optim_wrapper"):
        _set_optimizer(new.optim_wrapper, lr_mult, said)
    if "SyncBN" in str(new.model):
        if not sync_bn:
            replace_type(new.model, "SyncBN", "BN")
        said.append(
            "norms: SyncBN stays; snella-seg train has BN in its place on one GPU or none"
            if sync_bn
            else "norms: BN in place of SyncBN"
        )
    return new


def own_rules(paramwise_cfg: Mapping[str, Any] | None) -> dict[str, Any]:
    """``paramwise_cfg`` of mmseg's layer decay as our constructor has it; any other as it is."""
    rules = dict(paramwise_cfg or {})
    rate = rules.get("layer_decay_rate", rules.get("decay_rate"))
    rules = {key: value for key, value in rules.items() if key not in _THEIRS}
    return rules if rate is None else {**rules, "decay_rate": rate, "flat_decay_mult": 0.0}


def _wrap_backbone(cfg: "Config", options: dict[str, Any], said: list[str]) -> None:
    model = cfg.get("model") or {}
    inner = model.get("backbone")
    if not isinstance(inner, dict) or "type" not in inner:
        held = ", ".join(k for k, v in model.items() if isinstance(v, dict) and "type" in v)
        raise ValueError(
            f"the config has no model.backbone to wrap; its {type_name(model) or 'model'} holds "
            f"{held or 'nothing'}"
        )
    if type_name(inner) == "SnellaBackbone":
        raise ValueError(
            "the config is wrapped already: inherit it and set model.backbone.adapter, targets or "
            "method"
        )
    defaults = dict(method="snella", adapter=None, targets="auto")
    chosen = {key: value for key, value in options.items() if value != defaults[key]}
    model.backbone = dict(type="SnellaBackbone", backbone=inner, **chosen)
    said.append(f"backbone: SnellaBackbone around {type_name(inner)}")
    source = model.get("pretrained") or (inner.get("init_cfg") or {}).get("checkpoint")
    source = source or inner.get("pretrained") or inner.get("checkpoint_path")
    if source:
        said.append(f"base weights: {source}")
    else:
        said.append("base weights: none are named; set model.backbone.base_checkpoint")


def _add_import(cfg: "Config") -> None:
    imports = dict(cfg.get("custom_imports") or {})
    listed = imports.get("imports") or []
    listed = [listed] if isinstance(listed, str) else list(listed)
    if _REGISTER not in listed:
        cfg.custom_imports = {**imports, "imports": [*listed, _REGISTER]}


def _add_hooks(cfg: "Config", target_sparsity: float, said: list[str]) -> None:
    listed = list(cfg.get("custom_hooks") or [])
    ours = dict(type="SparsityAllocationHook", target_sparsity=target_sparsity)
    cfg.custom_hooks = [*listed, ours]
    kept = f", behind {', '.join(map(type_name, listed))}" if listed else ""
    said.append(f"hooks: SparsityAllocationHook{kept}")
    checkpoint = (cfg.get("default_hooks") or {}).get("checkpoint")
    if checkpoint and type_name(checkpoint) == "CheckpointHook":
        checkpoint["type"] = "SnellaCheckpointHook"
        said[-1] += ", SnellaCheckpointHook for CheckpointHook"


def _set_optimizer(wrapper: dict, lr_mult: float, said: list[str]) -> None:
    former = type_name(wrapper.get("constructor")) or "DefaultOptimWrapperConstructor"
    if former not in (*_LAYER_DECAY, "DefaultOptimWrapperConstructor"):
        said.append(f"optimizer: {former} stays; see that it gives adapters a rate of their own")
        return
    rules = own_rules(wrapper.get("paramwise_cfg"))
    rules.setdefault("flat_decay_mult", 0.0)
    custom = dict(rules.get("custom_keys") or {})
    rules["custom_keys"] = {**custom, "adapters": dict(lr_mult=lr_mult)}
    wrapper["constructor"] = "SnellaOptimWrapperConstructor"
    wrapper["paramwise_cfg"] = rules
    optimizer = wrapper.get("optimizer") or {}
    kind, rate = type_name(optimizer), optimizer.get("lr")
    said.append(
        f"optimizer: {kind}, {rate:g}; factors {lr_mult:g} times that; 1-D parameters do not decay"
        if isinstance(rate, (int, float))
        else f"optimizer: {kind}; factors learn {lr_mult:g} times as fast"
    )
    if "decay_rate" in rules:
        said.append(f"layer decay: {rules['decay_rate']:g} for each block, as {former} had it")
    if custom:
        said.append(f"rules that stay: {', '.join(list(custom)[:4])}" + " ..." * (len(custom) > 4))
    if kind == "SGD":
        said.append("worth a look: recipes for factors are of AdamW; SGD's rate is not one of them")
