"""mmseg's layer decay for wrapped backbones, which its own constructors do not know."""

from mmengine.optim import DefaultOptimWrapperConstructor
from mmseg.engine.optimizers import (
    LayerDecayOptimizerConstructor,
    LearningRateDecayOptimizerConstructor,
)
from mmseg.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..models import SnellaBackbone
from ..recipes import own_rules
from .constructor import SnellaOptimWrapperConstructor


class _KnowsWrapped(DefaultOptimWrapperConstructor):
    """Leaves models with a wrapped backbone to ours; all others are its own."""

    def __call__(self, model: nn.Module):
        inner = getattr(model, "module", model)
        if not isinstance(getattr(inner, "backbone", None), SnellaBackbone):
            return super().__call__(model)
        wrapper = {**self.optim_wrapper_cfg, "optimizer": self.optimizer_cfg}
        return SnellaOptimWrapperConstructor(wrapper, own_rules(self.paramwise_cfg))(model)


for _stock in (LearningRateDecayOptimizerConstructor, LayerDecayOptimizerConstructor):
    OPTIM_WRAPPER_CONSTRUCTORS.register_module(
        name=_stock.__name__,
        module=type(_stock.__name__, (_KnowsWrapped, _stock), {"__doc__": _stock.__doc__}),
        force=True,
    )
