"""Which image sizes a backbone takes, and what it needs to take those of segmentation."""

import math
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..configs import type_name
from ..inject import FAMILIES, Family, family_of


def with_timm_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a TIMMBackbone with what its model needs as a backbone, where it says nothing.

    As ``dynamic_img_size`` for ViTs; other configs are returned as they are. Which, the families
    tell (:attr:`snella_seg.inject.Family.timm_options`).
    """
    if type_name(config) != "TIMMBackbone":
        return dict(config)
    return {**_timm_family(config).timm_options, **config}


def _timm_family(config: Mapping[str, Any]) -> Family:
    from timm.models import is_model, is_model_in_modules

    name = config.get("model_name", "")
    if not is_model(name):
        return Family()
    known = [m.removeprefix("timm.models.") for f in FAMILIES.values() for m in f.modules]
    return family_of(f"timm.models.{m}" for m in known if is_model_in_modules(name, {m}))


class ImageSizes:
    """What sizes a backbone takes; images of others are padded, or refused in one line.

    Args:
        config: of the stock backbone.
        backbone: the stock backbone.
    """

    def __init__(self, config: Mapping[str, Any], backbone: nn.Module) -> None:
        timm = type_name(config) == "TIMMBackbone"
        classes = (cls.__module__ for cls in type(backbone).__mro__)
        self.name = config.get("model_name", type_name(config)) if timm else type_name(config)
        self.rule = (_timm_family(config) if timm else family_of(classes)).sizes
        self.img_size = _img_size(config, backbone, timm) if isinstance(self.rule, str) else None

    def fit(self, x: Tensor) -> Tensor:
        """Pad images (N, C, H, W) by zeros, below and on the right, to a size that is taken.

        Raises:
            ValueError: where the backbone takes its ``img_size`` only.
        """
        height, width = x.shape[-2:]
        if isinstance(self.rule, int):
            below, right = -height % self.rule, -width % self.rule
            return F.pad(x, (0, right, 0, below)) if below or right else x
        if self.rule == "any" or self.img_size is None:
            return x
        (rows, columns), given = self.img_size, (height, width)
        exact = given == (rows, columns)
        if exact or ("multiples" in self.rule and not (height % rows or width % columns)):
            return x
        raise ValueError(
            f"{self.name} takes images of {self.rule}={rows}x{columns}, got {height}x{width}: set "
            f"img_size of the inner backbone to the crop, and test by "
            f"model.test_cfg=dict(mode='slide', crop_size=(H, W), stride=...) with the same crop"
        )

    @staticmethod
    def crop(maps: tuple[Tensor, ...], given: Tensor, fitted: Tensor) -> tuple[Tensor, ...]:
        """Cut off the maps (N, C, h, w) what stands for the padding alone."""
        if given.shape == fitted.shape:
            return maps
        cut = []
        for one in maps:
            rows, columns = (
                math.ceil(size * cells / padded)
                for size, cells, padded in zip(
                    given.shape[-2:], one.shape[-2:], fitted.shape[-2:], strict=True
                )
            )
            cut.append(one[..., :rows, :columns].contiguous())
        return tuple(cut)


def _img_size(config: Mapping[str, Any], backbone: nn.Module, timm: bool) -> tuple[int, int] | None:
    """Height and width that the backbone is built for; None where it does not tell."""
    size = config.get("img_size", getattr(backbone, "img_size", None))
    if size is None and timm:
        from timm.models import get_pretrained_cfg

        known = get_pretrained_cfg(config["model_name"])
        size = None if known is None else known.input_size[-2:]
    if isinstance(size, int):
        return size, size
    if size is None:
        return None
    return (size[0], size[-1])
