"""Optimizer parameters of a model that is mostly frozen."""

import logging

from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class SnellaOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's default constructor without a line per frozen parameter and with few groups.

    Takes the same ``paramwise_cfg`` (``custom_keys``, ``norm_decay_mult``, ``flat_decay_mult``
    ...). Frozen parameters are left out silently; parameters with the same options share a group,
    so that fused and foreach optimizers work on long lists; and ``flat_decay_mult`` also holds
    for 1-D parameters under a custom key, unless that key has a ``decay_mult`` of its own.
    """

    def __call__(self, model: nn.Module):
        if not self.paramwise_cfg:
            self.paramwise_cfg = dict(custom_keys={})
        # Not by logging.disable(): mmengine's logger would take it for good.
        logger = MMLogger.get_current_instance()
        logger.addFilter(_is_worth_saying)
        try:
            return super().__call__(model)
        finally:
            logger.removeFilter(_is_worth_saying)

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


def _is_worth_saying(record: logging.LogRecord) -> bool:
    """Whether a line of mmengine's constructor is of something else than each single parameter."""
    text = record.getMessage()
    return "its requires_grad=False" not in text and not text.startswith("paramwise_options")
