"""Optimizer parameters of a model that is mostly frozen."""

import difflib
import logging
import math

from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..inject import is_output_norm


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class SnellaOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's default constructor without a line per frozen parameter and with few groups.

    Takes the same ``paramwise_cfg`` (``custom_keys``, ``norm_decay_mult``, ``flat_decay_mult``
    ...). Frozen parameters are left out silently; parameters with the same options share a group,
    so that fused and foreach optimizers work on long lists; and ``flat_decay_mult`` also holds
    for 1-D parameters under a custom key, unless that key has a ``decay_mult`` of its own.

    Two more keys of ``paramwise_cfg`` go before all rules about learning rates, and leave those
    about decay: ``backbone_lr``, the rate of all that is trained in ``model.backbone``, and
    ``head_lr``, that of all else; output norms, which segmentation adds to a pretrained Swin,
    belong to the latter.
    """

    def __call__(self, model: nn.Module):
        self._check(model)
        if not self.paramwise_cfg:
            self.paramwise_cfg = dict(custom_keys={})
        self.paramwise_cfg = dict(self.paramwise_cfg)
        rates = {
            inside: self.paramwise_cfg.pop(key, None)
            for inside, key in ((True, "backbone_lr"), (False, "head_lr"))
        }
        # Not by logging.disable(): mmengine's logger would take it for good.
        logger = MMLogger.get_current_instance()
        logger.addFilter(_is_worth_saying)
        try:
            wrapper = super().__call__(model)
        finally:
            logger.removeFilter(_is_worth_saying)
        # Plain dicts, not parts of a config, which torch.compile does not take.
        groups = wrapper.optimizer.param_groups
        groups[:] = [{key: group[key] for key in group} for group in groups]
        if any(rate is not None for rate in rates.values()):
            _set_rates(wrapper.optimizer, getattr(model, "module", model), rates)
        return wrapper

    def _check(self, model: nn.Module) -> None:
        """Refuse rates that are no numbers, counts below one, and slips of the pen in keys."""
        options = dict(self.paramwise_cfg or {})
        rates = {f"paramwise_cfg.{key}": options.get(key) for key in ("backbone_lr", "head_lr")}
        rates["optimizer.lr"] = self.optimizer_cfg.get("lr")
        for key, rate in rates.items():
            number = isinstance(rate, (int, float)) and not isinstance(rate, bool)
            if rate is not None and not (number and 0.0 <= rate < math.inf):
                raise ValueError(f"optim_wrapper.{key} must be a number, got {rate!r}")
        counts = self.optim_wrapper_cfg.get("accumulative_counts", 1)
        if isinstance(counts, bool) or not isinstance(counts, int) or counts < 1:
            raise ValueError(
                f"optim_wrapper.accumulative_counts must be a positive integer, got {counts!r}"
            )
        _refuse_unknown("paramwise_cfg", options, _PARAMWISE)
        for key, multipliers in options.get("custom_keys", {}).items():
            _refuse_unknown(f"paramwise_cfg.custom_keys {key!r}", multipliers, _MULTIPLIERS)
        names = [name for name, _ in model.named_parameters()]
        parts = sorted({part for name in names for part in name.split(".")})
        for key in options.get("custom_keys", {}):
            near = difflib.get_close_matches(key, parts, 1, 0.8)
            if near and not any(key in name for name in names):
                raise ValueError(
                    f"paramwise_cfg.custom_keys {key!r} is part of no parameter's name, did you "
                    f"mean {near[0]!r}?"
                )

    def add_params(self, params: list[dict], module: nn.Module, **kwargs) -> None:
        single: list[dict] = []
        super().add_params(single, module, **kwargs)
        flat_mult = self.paramwise_cfg.get("flat_decay_mult")
        groups = {}
        for group in single:
            is_flat = all(p.ndim == 1 for p in group["params"])
            if is_flat and flat_mult is not None and "decay_mult" not in group and self.base_wd:
                group["weight_decay"] = self.base_wd * flat_mult
        for group in [*params, *single]:
            options = tuple(sorted((k, repr(v)) for k, v in group.items() if k != "params"))
            if options in groups:
                groups[options]["params"] += group["params"]
            else:
                groups[options] = {**group, "params": list(group["params"])}
        params[:] = groups.values()


#: Keys of ``paramwise_cfg``, mmengine's and ours; others would be ignored without a word.
_PARAMWISE = (
    *("custom_keys", "bias_lr_mult", "bias_decay_mult", "norm_decay_mult", "flat_decay_mult"),
    *("dwconv_decay_mult", "dcn_offset_lr_mult", "bypass_duplicate", "backbone_lr", "head_lr"),
)
_MULTIPLIERS = ("lr_mult", "decay_mult")


def _refuse_unknown(where: str, options: dict, known: tuple[str, ...]) -> None:
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1) or [", ".join(known)]
            raise ValueError(f"optim_wrapper.{where} has no key {key!r}, did you mean {near[0]}?")


def _of_backbone(name: str) -> bool:
    """Whether a parameter is of ``model.backbone`` and had a value before segmentation."""
    inside = name.removeprefix("backbone.")
    return inside != name and not is_output_norm(inside.removeprefix("backbone."))


def _set_rates(optimizer, model: nn.Module, rates: dict[bool, float | None]) -> None:
    """Part groups into the backbone's (True) and other parameters; set rates that are given."""
    inside = {id(p) for n, p in model.named_parameters() if _of_backbone(n)}
    parted = []
    for group in optimizer.param_groups:
        for is_inside, rate in rates.items():
            chosen = [p for p in group["params"] if (id(p) in inside) == is_inside]
            if chosen:
                lr = group["lr"] if rate is None else rate
                parted.append({**group, "params": chosen, "lr": lr})
    optimizer.param_groups[:] = parted


def _is_worth_saying(record: logging.LogRecord) -> bool:
    """Whether a line of mmengine's constructor is of something else than each single parameter."""
    text = record.getMessage()
    return "its requires_grad=False" not in text and not text.startswith("paramwise_options")
