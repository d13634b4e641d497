"""Stand-ins for data sets and pretrained files, so that a config runs where neither is at hand.

Written into the folder that a config's relative paths are looked for from: a few images of noise
with label maps in the layout of the config's data sets, and random base weights in the form and
under the name that the config asks for.
"""

import inspect
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmseg.registry import DATASETS, MODELS
from torch import nn

from snella_seg.models import SnellaBackbone

#: Height and width of images in pixels, a little more than crops of 512 x 1024.
SIZE = (540, 1080)
#: Beginning of a file's name -> the timm model whose names it has; others are named as the model.
TIMM_NAMES = {
    "beit_base_patch16_224": "beit_base_patch16_224",
    "beit_large_patch16_224": "beit_large_patch16_224",
    "deit_base_patch16_224": "deit_base_patch16_224",
    "mae_pretrain_vit_base": "vit_base_patch16_224",
}


def write_datasets(cfg: Config, folder: Path) -> None:
    """Two images with label maps of all classes for each split that a config trains or tests on."""
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        for dataset in _plain_datasets(loader.dataset):
            _write_split(dataset, folder / dataset.data_root)


def _plain_datasets(dataset: ConfigDict) -> Iterator[ConfigDict]:
    parts = dataset.get("datasets") or ([dataset.dataset] if "dataset" in dataset else [])
    for part in parts:
        yield from _plain_datasets(part)
    if not parts:
        yield dataset


def _write_split(dataset: ConfigDict, root: Path) -> None:
    cls = DATASETS.get(f"mmseg.{dataset.type}")
    defaults = inspect.signature(cls.__init__).parameters
    images, labels = (
        (dataset.data_prefix[key], dataset.get(suffix, defaults[suffix].default))
        for key, suffix in (("img_path", "img_suffix"), ("seg_map_path", "seg_map_suffix"))
    )
    zero = any(t.get("reduce_zero_label") for t in dataset.pipeline)  # 0 is then no class
    values = len(cls.METAINFO["classes"]) + zero
    stripes = np.arange(SIZE[1]) % values
    noise = np.random.default_rng(0)
    for name in ("one", "two"):
        _write(root / images[0] / f"{name}{images[1]}", noise.integers(0, 256, (*SIZE, 3)))
        _write(root / labels[0] / f"{name}{labels[1]}", np.broadcast_to(stripes, SIZE))
    if dataset.get("ann_file"):
        path = root / dataset.ann_file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("one\ntwo\n")


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.ascontiguousarray(pixels, np.uint8))


def write_weights(backbone: SnellaBackbone, folder: Path) -> Path:
    """Random weights in the file that a config names; one to download goes into torch's cache.

    Args:
        backbone: as built by the config, its base not loaded.
        folder: where relative paths are looked for from; ``TORCH_HOME`` is to be ``torch`` in it.
    """
    source = backbone.named_source
    name = Path(source).name
    remote = source.startswith("http")
    path = folder / ("torch/hub/checkpoints" if remote else Path(source).parent) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if remote:  # converted files, which have mmsegmentation's own names
        state = MODELS.build({**backbone.inner_config, "init_cfg": None}).state_dict()
    else:
        state = _timm_model(Path(name).stem).state_dict()
        state = {"model": state} if _published_by_authors(name) else state
    torch.save(state, path)
    return path


def _published_by_authors(name: str) -> bool:
    return any(name.startswith(beginning) for beginning in TIMM_NAMES)


def _timm_model(stem: str) -> nn.Module:
    import timm

    known = (model for beginning, model in TIMM_NAMES.items() if stem.startswith(beginning))
    return timm.create_model(next(known, stem))
