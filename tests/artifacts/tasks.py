"""What tests of artifacts share: a base, random tasks on it, and what they say of an image."""

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from snella_seg.artifacts import find_wrapper
from snella_seg.inject import list_adapters

SWIN = dict(
    type="SwinTransformer",
    pretrain_img_size=64,
    embed_dims=16,
    patch_size=4,
    window_size=4,
    depths=(2, 2),
    num_heads=(2, 4),
    strides=(4, 2),
    out_indices=(0, 1),
)


def save_base(config: Config, path: Path, seed: int = 1) -> Path:
    """Write random weights of a config's stock backbone."""
    init_default_scope("mmseg")
    torch.manual_seed(seed)
    backbone = MODELS.build(config.model.backbone.backbone)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save(backbone.state_dict(), path)
    return path


def randomize(model, seed: int, sparsity: float = 0.6) -> None:
    """Give the task's part of a segmentor values as after training."""
    generator = torch.Generator().manual_seed(seed)
    wrapper = find_wrapper(model)[1]
    for i, adapter in enumerate(list_adapters(wrapper).values()):
        for factors in adapter.factors:
            factors.data.normal_(0.0, 0.5, generator=generator)
        adapter.set_num_nonzero(round((1 - sparsity) * adapter.size) + i)
    inside = {id(p) for p in wrapper.backbone.parameters()}
    trained = dict(wrapper.backbone.named_parameters())
    for name in sorted(wrapper.trained_base):
        trained[name].data.normal_(0.0, 0.1, generator=generator)
    for parameter in model.parameters():
        if id(parameter) not in inside:
            parameter.data.normal_(0.0, 0.1, generator=generator)


def scores(model, image: torch.Tensor) -> torch.Tensor:
    """Logits of a segmentor."""
    with torch.no_grad():
        return model(image, mode="tensor")
