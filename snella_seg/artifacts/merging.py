"""Merging: adapters added to their weights, and what remains is a stock model."""

import copy
import inspect
import weakref
from collections.abc import Iterator

import mmseg.registry
import torch
from mmengine.config import Config
from mmengine.registry import Registry
from mmengine.runner import Runner
from torch import Tensor, nn

from ..configs import type_name
from ..inject import adapted_weights, attach_adapters, base_state, detach_adapters
from ..layers import AdaptedModule
from ..models import SnellaBackbone, find_wrapper
from ..models.image_size import with_timm_options
from .stock_head import fold_linear_heads, stock_linear_head

# Merged model -> what brings its adapters back.
_MERGED: weakref.WeakKeyDictionary[nn.Module, dict] = weakref.WeakKeyDictionary()


def merge_adapters(model: nn.Module) -> nn.Module:
    """Add every delta to its weight, in place; modules are ordinary ones afterwards.

    Until :func:`unmerge_adapters` is called, or the model is gone, the original weights are kept
    beside the merged ones.

    Args:
        model: carries adapters at any depth.

    Returns:
        The same model, with the weights ``W + delta`` as plain parameters and without adapters.

    Raises:
        ValueError: when it carries none.
    """
    modules = {n: m for n, m in model.named_modules() if isinstance(m, AdaptedModule)}
    if not modules:
        raise ValueError(f"{type(model).__name__} carries no SNELLA adapters to merge")
    originals, merged = {}, {}
    for name, module in modules.items():
        if module.adapters:
            originals[name] = (module.adapted_weight_name, module.base_parameter)
            merged[name] = _merged_weight(module)
    for module in model.modules():
        if isinstance(module, SnellaBackbone):
            module.restore_modules()
            module.merged = True
    adapters = detach_adapters(model)
    for name, (weight_name, original) in originals.items():
        parameter = nn.Parameter(merged[name], requires_grad=original.requires_grad)
        modules[name]._parameters[weight_name] = parameter
    _MERGED[model] = dict(adapters=adapters, originals=originals)
    return model


def unmerge_adapters(model: nn.Module) -> nn.Module:
    """Undo :func:`merge_adapters`: the original weights, bit for bit, and the adapters.

    Raises:
        ValueError: when this very model was not merged in this process.
    """
    record = _MERGED.pop(model, None)
    if record is None:
        raise ValueError(
            f"this {type(model).__name__} was not merged here, or unmerged already; the original "
            "weights are gone. Load the adapters and their base instead"
        )
    for name, (weight_name, original) in record["originals"].items():
        store = model.get_submodule(name)._parameters
        original.data = original.data.to(store[weight_name].device)  # where the model is now
        store[weight_name] = original
    device = next(model.parameters()).device
    for adapter in record["adapters"].values():
        adapter.to(device).train(model.training)
    attach_adapters(model, record["adapters"])
    for module in model.modules():
        if isinstance(module, SnellaBackbone):
            module.optimize_modules()
            module.merged = False
    return model


@torch.no_grad()
def _merged_weight(module: AdaptedModule) -> Tensor:
    """W + deltas, made outside of autocast; a tensor of its own, of the dtype and shape of W."""
    weight = module.base_parameter
    with torch.autocast(weight.device.type, enabled=False):
        enabled, module.adapters_enabled = module.adapters_enabled, True
        merged = module.effective_weight()
        module.adapters_enabled = enabled
    return merged.detach().to(weight.dtype).clone().view_as(weight)


def merged_backbone(wrapper: SnellaBackbone) -> dict[str, Tensor]:
    """State of the stock backbone that computes what a SnellaBackbone computes; copies."""
    state = {
        name: value.detach().cpu().clone() for name, value in base_state(wrapper.backbone).items()
    }
    for key, module, _ in adapted_weights(wrapper.backbone):
        state[key] = _merged_weight(module).cpu()
    return state


def merged_segmentor(model: nn.Module) -> dict[str, Tensor]:
    """State of the stock segmentor: the merged backbone under its stock names, and stock heads."""
    prefix, wrapper = find_wrapper(model)
    state = {k: v.cpu() for k, v in model.state_dict().items() if not k.startswith(prefix)}
    state.update({prefix + name: value for name, value in merged_backbone(wrapper).items()})
    return fold_linear_heads(state, model)


def stock_config(config: Config) -> Config:
    """A run's config without snella_seg, for the merged checkpoint.

    The backbone is the inner one, without a checkpoint of its own. Hooks, imports and the
    optimizer's constructor are taken out; a LinearHead becomes mmseg's FCNHead without its batch
    norm, which is part of the convolution then; data, pipelines, other heads and schedules stay.

    Raises:
        ValueError: when something of snella_seg is left that this function does not know, or the
            backbone needs the wrapper (timm's Swin, whose maps it brings into mmseg's layout), or
            a LinearHead's norm is no batch norm.
    """
    new = copy.deepcopy(config.to_dict())
    for key in ("prepare", "work_dir", "load_from", "resume", "launcher"):
        new.pop(key, None)
    read = inspect.signature(Runner.__init__).parameters
    for key in new.keys() - read.keys():  # variables, such as those of pieces for other configs
        if isinstance(new[key], dict) and _is_ours(new[key]):
            del new[key]
    model = new["model"]
    model["backbone"] = _inner(model["backbone"])
    model.pop("pretrained", None)
    for key in ("decode_head", "auxiliary_head"):
        if model.get(key):
            model[key] = _stock_heads(model[key])
    imports = new.get("custom_imports", {})
    kept = [i for i in _listed(imports.get("imports")) if not i.startswith("snella_seg")]
    new.pop("custom_imports", None)
    if kept:
        new["custom_imports"] = {**imports, "imports": kept}
    hooks = [h for h in new.pop("custom_hooks", None) or [] if not _is_ours(h)]
    if hooks:
        new["custom_hooks"] = hooks
    if type_name(new.get("model_wrapper_cfg") or {}) == "SnellaFullyShard":
        del new["model_wrapper_cfg"]
    checkpoint = new.get("default_hooks", {}).get("checkpoint", {})
    if type_name(checkpoint) == "SnellaCheckpointHook":
        checkpoint["type"] = "CheckpointHook"
        for key in ("slim", "exact_resume"):
            checkpoint.pop(key, None)
    _stock_optimizer(new.get("optim_wrapper", {}))
    for key in ("val_evaluator", "test_evaluator"):
        if new.get(key):
            new[key] = _stock_metrics(new[key])
    stock = Config(new)
    left = list(dict.fromkeys(_types_of_ours(new)))
    if left:
        raise ValueError(
            f"the config cannot be freed of snella_seg, which brings {', '.join(left[:6])}: use "
            "what mmseg has instead, or write the bare backbone (--backbone)"
        )
    return stock


def _inner(backbone: dict) -> dict:
    if type_name(backbone) != "SnellaBackbone":
        raise ValueError(
            f"the config's backbone is a {type_name(backbone)}, not a SnellaBackbone: there is "
            "nothing to merge"
        )
    inner = with_timm_options(backbone["backbone"])
    inner.pop("init_cfg", None)
    if type_name(inner) == "TIMMBackbone":
        if "swin" in inner.get("model_name", ""):
            raise ValueError(
                "timm's Swin gives its maps in another layout than mmseg's heads take, so no "
                "stock config can run it; write the bare backbone (--backbone) instead"
            )
        inner.update(pretrained=False)
        inner.pop("checkpoint_path", None)
    else:
        inner.pop("pretrained", None)
    return inner


def _stock_heads(heads: dict | list) -> dict | list:
    if isinstance(heads, dict):
        return stock_linear_head(heads) if type_name(heads) == "LinearHead" else heads
    return [_stock_heads(head) for head in heads]


def _stock_optimizer(wrapper: dict) -> None:
    """Leave out what of an optimizer's config only adapters need."""
    if type_name(wrapper.get("constructor")) == "SnellaOptimWrapperConstructor":
        del wrapper["constructor"]
    options = wrapper.get("paramwise_cfg") or {}
    custom = options.get("custom_keys", {})
    for key in [k for k in custom if "adapters" in k]:
        del custom[key]
    if type_name(wrapper) == "CPUAmpOptimWrapper":
        wrapper["type"] = "OptimWrapper"


def _stock_metrics(evaluator: dict | list) -> dict | list:
    """An evaluator's config with mmseg's metrics only."""
    if isinstance(evaluator, dict) and "metrics" in evaluator:
        return {**evaluator, "metrics": _stock_metrics(evaluator["metrics"])}
    listed = [evaluator] if isinstance(evaluator, dict) else evaluator
    kept = [dict(metric) for metric in listed if type_name(metric) != "CalibrationMetric"]
    for metric in kept:
        if type_name(metric) == "ClassIoUMetric":
            metric["type"] = "IoUMetric"
    return kept[0] if isinstance(evaluator, dict) and kept else kept


def _is_ours(config: dict) -> bool:
    """Whether a config with a type is of something that snella_seg registers."""
    kind = config.get("type")
    if not isinstance(kind, str):
        return getattr(kind, "__module__", "").startswith("snella_seg")
    registries = (value for value in vars(mmseg.registry).values() if isinstance(value, Registry))
    found = (registry.get(kind) for registry in registries if kind in registry)
    return any(getattr(one, "__module__", "").startswith("snella_seg") for one in found)


def _types_of_ours(node) -> Iterator[str]:
    """All types of snella_seg that a config names, at any depth; paths may hold the word."""
    if isinstance(node, dict):
        if "type" in node and _is_ours(node):
            yield type_name(node)
        for value in node.values():
            yield from _types_of_ours(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _types_of_ours(value)


def _listed(value) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def half_precision_loss(
    wrapper: SnellaBackbone, dtype: torch.dtype
) -> Iterator[tuple[str, float, float]]:
    """What storing merged weights in half precision does to the deltas.

    Yields:
        Name of the weight; share of its non-zero delta that is lost (Frobenius norm of the error
        over that of the delta); share of the changed weights that end as unchanged ones would.
    """
    for name, module, _ in adapted_weights(wrapper.backbone):
        base, merged = module.base_parameter.detach().float(), _merged_weight(module).float()
        changed = base != merged
        delta, rounded = (merged - base)[changed], merged.to(dtype).float()
        if not delta.numel():
            continue
        error = (rounded - merged)[changed].norm() / delta.norm()
        same = rounded[changed] == base.to(dtype).float()[changed]
        yield name, float(error), float(same.float().mean())
