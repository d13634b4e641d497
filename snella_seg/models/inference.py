"""A segmentor from a config and a checkpoint, and images through it, outside of a Runner."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import HistoryBuffer
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample
from torch import nn

from ..configs import replace_type, type_name
from ..inject import is_adapter_key, list_adapters
from ..loading import CheckpointError, check_checkpoint
from .bands import check_bands, input_bands


def refuse_other_heads(model: nn.Module) -> None:
    """Let a model refuse checkpoints that do not fit its parts outside of the backbone.

    mmengine passes over what does not fit, so a head of other classes would stay random. The
    auxiliary head may be missing: it serves in training only.
    """
    _check_loads(model, _check_heads)


def refuse_lost_adapters(model: nn.Module) -> None:
    """Let a model without adapters refuse checkpoints with some, which mmengine would pass over."""
    _check_loads(model, _check_adapters)


def _check_loads(model: nn.Module, check: Callable) -> None:
    """Let a function look at the state dicts that are loaded into a model."""
    while hasattr(model, "module"):  # DDP, test-time augmentation
        model = model.module
    if isinstance(model, nn.Module):  # FlexibleRunner builds it later, from its config
        model._register_load_state_dict_pre_hook(check, with_module=True)


def _check_adapters(model: nn.Module, state_dict, prefix: str, *_) -> None:
    lost = sum(is_adapter_key(name) for name in state_dict)
    if lost and not list_adapters(model):
        raise CheckpointError(
            f"the checkpoint holds adapters ({lost} values) that this model has no place for: use "
            "the config that it was trained with, or merge them into the weights (tools/merge.py)"
        )


def _check_heads(model: nn.Module, state_dict, prefix: str, *_) -> None:
    misfits, other_classes = [], []
    for name, value in model.state_dict().items():
        found = state_dict.get(prefix + name)
        if name.startswith("backbone.") or not value.is_floating_point():
            continue
        if found is None and not name.startswith("auxiliary_head."):
            misfits.append(f"{name} is missing")
        elif found is not None and found.shape != value.shape:
            misfits.append(f"{name} is {tuple(found.shape)} instead of {tuple(value.shape)}")
            if ".conv_seg." in name and found.shape[1:] == value.shape[1:]:
                other_classes.append(misfits[-1])
    if not misfits:
        return
    if misfits == other_classes:
        said, remedy = misfits[0], ", or set num_classes of its heads to that"
    else:
        more = f" and {len(misfits) - 4} more" if len(misfits) > 4 else ""
        said, remedy = "; ".join(misfits[:4]) + more, ""
    raise CheckpointError(
        f"the checkpoint does not fit this model: {said}. Use the config that it was trained "
        f"with{remedy}"
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
    meta = None
    if checkpoint is None:
        model.backbone.init_weights()
    else:
        check_checkpoint(checkpoint, "checkpoint")
        allow_logged_values()
        refuse_other_heads(model)
        refuse_lost_adapters(model)
        meta = load_checkpoint(model, checkpoint, map_location="cpu").get("meta")
    model.cfg = cfg
    model.dataset_meta = meta.get("dataset_meta") if isinstance(meta, dict) else None
    return model.eval()


def testing_pipeline(cfg: Config) -> list[dict]:
    """The transforms that tests use: of ``test_dataloader``, else ``test_pipeline``, else none."""
    dataset = (cfg.get("test_dataloader") or {}).get("dataset") or {}
    while "pipeline" not in dataset and ("dataset" in dataset or dataset.get("datasets")):
        dataset = dataset.get("dataset") or dataset["datasets"][0]  # wrapped, or several
    return dataset.get("pipeline") or cfg.get("test_pipeline") or []


def load_image(cfg: Config, image: str) -> dict:
    """A batch of one image file, taken through a config's test pipeline without its labels.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it cannot be read.
    """
    steps = testing_pipeline(cfg)
    kept = [step for step in steps if "Annotations" not in type_name(step)]
    return pseudo_collate([_transform(kept, image)])


def read_picture(cfg: Config, image: str) -> np.ndarray:
    """An image file to look at, (H, W, 3), BGR of 8 bits, read as by a config's test pipeline.

    Of several bands the first three are taken; other than 8 bits are stretched over their range.

    Raises:
        As :func:`load_image`.
    """
    steps = testing_pipeline(cfg)
    loads = [s for s in steps if "Load" in type_name(s) and "Annotations" not in type_name(s)]
    picture = np.atleast_3d(_transform(loads, image)["img"])
    picture = picture[..., :3] if picture.shape[-1] >= 3 else picture[..., :1].repeat(3, -1)
    if picture.dtype != np.uint8:
        low, high = np.nanmin(picture), np.nanmax(picture)
        picture = ((picture - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8)
    return np.ascontiguousarray(picture)


def _transform(steps: list[dict], image: str) -> dict:
    if not Path(image).is_file():
        raise FileNotFoundError(f"image not found: {image}")
    if not steps:
        raise ValueError("the config has no test_dataloader and no test_pipeline to read by")
    try:
        return Compose(steps)(dict(img_path=str(image)))
    except Exception as error:  # whatever a reader of images may raise
        raise ValueError(
            f"image {image} cannot be read by the test pipeline: {' '.join(str(error).split())}"
        ) from error


@torch.no_grad()
def segment(model: nn.Module, image: str) -> np.ndarray:
    """The class of every pixel of an image file, (H, W), int64.

    Raises:
        As :func:`load_image`; ValueError when it has other bands than the model takes.
    """
    batch = load_image(model.cfg, image)
    found, wanted = batch["inputs"][0].shape[0], input_bands(model.backbone)
    if found != wanted:
        raise ValueError(f"image {image} has {found} bands, the model takes {wanted}")
    result = model.test_step(batch)[0]
    return result.pred_sem_seg.data[0].cpu().numpy().astype(np.int64)  # one logit gives floats


def dataset_meta(model: nn.Module) -> dict:
    """Classes and palette of a segmentor: its checkpoint's, or else those of its config's data."""
    if getattr(model, "dataset_meta", None):
        return model.dataset_meta
    dataset = (model.cfg.get("test_dataloader") or {}).get("dataset") or {}
    kind = DATASETS.get(type_name(dataset)) if dataset else None
    return {**getattr(kind, "METAINFO", {}), **(dataset.get("metainfo") or {})}


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


def allow_logged_values() -> None:
    """Let torch's safe loading take the logged values that mmengine puts into checkpoints.

    Some builds of mmengine allow the same for the time of a load, and take back afterwards what
    others had allowed, so this is called before each load of ours, too.
    """
    if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        return  # torch < 2.6 has no need of it
    dtypes = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "u1", "?")]
    reconstruct = np.core.multiarray if np.__version__ < "2" else np._core.multiarray
    arrays = [*dtypes, np.dtype, np.ndarray, reconstruct._reconstruct, reconstruct.scalar]
    torch.serialization.add_safe_globals([*arrays, HistoryBuffer, (_statistic, "builtins.getattr")])


def _statistic(cls: type, name: str) -> Callable:
    """``getattr`` as history buffers need it, which are pickled with their statistics."""
    if cls is not HistoryBuffer or name.startswith("_"):
        raise ValueError(f"a checkpoint asks for {name} of {cls}")
    return getattr(cls, name)
