"""Optimizer parameters of a model that is mostly frozen."""

import logging

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
        return super().__call__(model)

    def add_params(self, params: list[dict], module: nn.Module, **kwargs) -> None:
        single: list[dict] = []
        before = logging.root.manager.disable
        logging.disable(max(before, logging.WARNING))
        try:
            super().add_params(single, module, **kwargs)
        finally:
            logging.disable(before)
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
