"""What a head has to know of a backbone: channels and strides of its maps, what is adapted."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmseg.registry import MODELS

from ..configs import type_name
from ..inject import Coverage, cover, list_adapters
from .backbone import SnellaBackbone
from .bands import input_bands

#: Height and width of the image that backbones of any size are tried with; strides divide it.
_SIZE = 128


@dataclass(frozen=True)
class BackboneFacts:
    """``channels`` are the ``in_channels`` of heads and necks, one a map; ``strides`` likewise."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    coverage: Coverage


def describe_backbone(backbone: Mapping[str, Any] | SnellaBackbone) -> BackboneFacts:
    """Build a backbone, without weights, and look at the maps that it gives.

    Args:
        backbone: config of a SnellaBackbone or of a stock backbone, or a SnellaBackbone, which is
            left as it is.

    Returns:
        Channels and strides of its maps, and what of it is adapted.
    """
    if not isinstance(backbone, SnellaBackbone):
        config = copy.deepcopy(dict(backbone))
        if type_name(config) != SnellaBackbone.__name__:
            config = dict(type=SnellaBackbone.__name__, backbone=config)
        backbone = MODELS.build(ConfigDict(config))
    parameter = next(backbone.parameters())
    size = backbone.image_sizes.img_size or (_SIZE, _SIZE)
    image = parameter.new_zeros(1, input_bands(backbone), *size)
    training = {module: module.training for module in backbone.modules()}
    try:
        backbone.eval()
        with torch.no_grad():
            maps = backbone(image)
    finally:
        for module, mode in training.items():
            module.training = mode
    return BackboneFacts(
        channels=tuple(one.shape[1] for one in maps),
        strides=tuple(round(size[0] / one.shape[2]) for one in maps),
        coverage=cover(backbone.backbone, list_adapters(backbone.backbone)),
    )
