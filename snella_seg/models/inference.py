"""A segmentor from a config and a checkpoint, and images through it, outside of a Runner."""

import copy
from pathlib import Path

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn

from ..configs import replace_type, type_name
from ..loading import CheckpointError, check_checkpoint
from .bands import check_bands, input_bands


def refuse_other_heads(model: nn.Module) -> None:
    """Let a model refuse checkpoints that do not fit its parts outside of the backbone.

    mmengine passes over what does not fit, so a head of other classes would stay random. The
    auxiliary head may be missing: it serves in training only.
    """
    while hasattr(model, "module"):  # DDP, test-time augmentation
        model = model.module
    if not isinstance(model, nn.Module):  # FlexibleRunner builds it later, from its config
        return
    model._register_load_state_dict_pre_hook(_check_heads, with_module=True)


def _check_heads(model: nn.Module, state_dict, prefix: str, *_) -> None:
    misfits = []
    for name, value in model.state_dict().items():
        found = state_dict.get(prefix + name)
        if name.startswith("backbone.") or not value.is_floating_point():
            continue
        if found is None and not name.startswith("auxiliary_head."):
            misfits.append(f"{name} is missing")
        elif found is not None and found.shape != value.shape:
            shapes = f"{tuple(found.shape)} instead of {tuple(value.shape)}"
            misfits.append(f"{name} is {shapes}")
    if misfits:
        raise CheckpointError(
            f"the checkpoint does not fit this model: {'; '.join(misfits[:4])}"
            + (f" and {len(misfits) - 4} more" if len(misfits) > 4 else "")
            + ". Use the config that it was trained with"
        )


def build_segmentor(cfg: Config, checkpoint: str | None = None) -> nn.Module:
    """Build a config's segmentor on the CPU, in eval mode, and load a checkpoint into it.

    Args:
        cfg: is left as it is.
        checkpoint: a .pth file, slim or whole, or an adapter file. Without one the backbone's base
            weights are loaded and nothing else.

    Raises:
        FileNotFoundError: when a file is missing.
        CheckpointError: when it does not fit.
        ValueError: when mean or std are for other bands than the backbone's.
    """
    cfg = copy.deepcopy(cfg)
    replace_type(cfg.model, "SyncBN", "BN")
    init_default_scope(cfg.get("default_scope", "mmseg"))
    model = MODELS.build(cfg.model)
    check_bands(model)
    meta = {}
    if checkpoint is None:
        model.backbone.init_weights()
    else:
        check_checkpoint(checkpoint, "checkpoint")
        allow_numpy_scalars()
        refuse_other_heads(model)
        meta = load_checkpoint(model, checkpoint, map_location="cpu").get("meta", {})
    model.cfg, model.dataset_meta = cfg, meta.get("dataset_meta")
    return model.eval()


def load_image(cfg: Config, image: str) -> dict:
    """A batch of one image file, taken through a config's test pipeline without its labels.

    Raises:
        FileNotFoundError: when there is no such file.
    """
    if not Path(image).is_file():
        raise FileNotFoundError(f"image not found: {image}")
    steps = cfg.get("test_pipeline") or cfg.test_dataloader.dataset.pipeline
    pipeline = Compose([step for step in steps if "Annotations" not in type_name(step)])
    try:
        return pseudo_collate([pipeline(dict(img_path=str(image)))])
    except Exception as error:  # whatever a reader of images may raise
        raise ValueError(
            f"image {image} cannot be read by the test pipeline: {' '.join(str(error).split())}"
        ) from error


@torch.no_grad()
def logits(model: nn.Module, image: str | None = None, size: int = 512) -> torch.Tensor:
    """What a segmentor says of an image, (1, classes, H/s, W/s), before it is resized.

    Args:
        model: of :func:`build_segmentor`.
        image: a file; None for noise.
        size: side of the noise in pixels.
    """
    if image is None:
        shape = (input_bands(model.backbone), size, size)
        noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        # padding in tests writes down what it did in the samples
        batch = dict(inputs=[torch.from_numpy(noise)], data_samples=[SegDataSample()])
    else:
        batch = load_image(model.cfg, image)
    return model(model.data_preprocessor(batch, False)["inputs"], mode="tensor")


def allow_numpy_scalars() -> None:
    """Let torch's safe loading take the numpy values that mmengine puts into checkpoints."""
    if not hasattr(torch.serialization, "add_safe_globals"):  # torch < 2.4 has no need of it
        return
    dtypes = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "u1", "?")]
    reconstruct = np.core.multiarray if np.__version__ < "2" else np._core.multiarray
    torch.serialization.add_safe_globals(
        [*dtypes, np.dtype, np.ndarray, reconstruct._reconstruct, reconstruct.scalar]
    )
