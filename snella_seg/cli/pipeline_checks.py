"""What the pipelines of a config have to hold, seen before an image is read."""

import logging
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmseg.registry import DATASETS, METRICS, TRANSFORMS

from ..configs import type_name

#: What a transform does -> stock transforms that do it, and with them those built on them.
_STEPS = {
    "image": {
        "LoadImageFromFile",
        "LoadSingleRSImageFromFile",
        "LoadMultipleRSImageFromFile",
        "LoadBiomedicalImageFromFile",
        "LoadBiomedicalData",
        "InferencerLoader",
    },
    "labels": {
        "LoadAnnotations",
        "LoadBiomedicalAnnotation",
        "LoadBiomedicalData",
        "LoadDepthAnnotation",
    },
    "packed": {"PackSegInputs"},
}
#: Transforms around others, which may do what those do.
_AROUND = {
    "Compose",
    "KeyMapper",
    "MultiScaleFlipAug",
    "RandomApply",
    "RandomChoice",
    "TestTimeAug",
    "TransformBroadcaster",
}
_STOCK = ("mmcv.", "mmseg.", "snella_seg.")


def check_pipelines(cfg: Config, loader: str) -> None:
    """See that a dataloader's images are loaded, labelled where that is asked for, and packed.

    Pipelines with transforms that mmcv and mmseg do not bring are let pass where those may do it.
    A warning names crops larger than ``data_preprocessor.size``.

    Raises:
        ValueError: naming the pipeline, what it lacks, and where that belongs.
    """
    labelled = loader.startswith("train") or _scores_labels(cfg, loader)
    for path, steps in _pipelines((cfg.get(loader) or {}).get("dataset"), f"{loader}.dataset"):
        each = [_what_it_does(step) for step in steps]
        done = {deed for deeds in each for deed in deeds or ()}
        where = f"{path}.pipeline"
        if "packed" in done and each[-1] is not None and "packed" not in each[-1]:
            raise ValueError(
                f"{where} goes on behind PackSegInputs with {type_name(steps[-1])}: put "
                "PackSegInputs last, since what it packs is no image any more"
            )
        if None in each:
            continue
        if "image" not in done:
            raise ValueError(f"{where} loads no image: begin with dict(type='LoadImageFromFile')")
        if labelled and "labels" not in done:
            raise ValueError(
                f"{where} loads no label maps, which {_who_needs(loader)} needs: put "
                "dict(type='LoadAnnotations') behind LoadImageFromFile, with the "
                "reduce_zero_label of the dataset"
            )
        if "packed" not in done:
            raise ValueError(f"{where} packs nothing: end it with dict(type='PackSegInputs')")
    if loader.startswith("train"):
        _warn_of_large_crops(cfg, loader)


def _what_it_does(step: Any) -> tuple[str, ...] | None:
    """Of the keys of ``_STEPS``; None where a transform may do anything."""
    kind = step.get("type") if hasattr(step, "get") else None
    kind = TRANSFORMS.get(kind) if isinstance(kind, str) else kind
    names = {base.__name__ for base in getattr(kind, "__mro__", ())}
    if names & _AROUND or not getattr(kind, "__module__", "").startswith(_STOCK):
        return None
    return tuple(deed for deed, known in _STEPS.items() if names & known)


def _pipelines(dataset: Any, path: str) -> Iterator[tuple[str, list]]:
    """Path and steps of what an image goes through, by datasets that read files themselves."""
    if not hasattr(dataset, "get"):
        return
    own = list(dataset.get("pipeline") or [])
    inner = [("dataset", dataset.get("dataset"))]
    inner += [(f"datasets.{i}", one) for i, one in enumerate(dataset.get("datasets") or [])]
    inner = [(key, one) for key, one in inner if one is not None]
    for key, one in inner:
        for where, steps in _pipelines(one, f"{path}.{key}"):
            yield (path if own else where), steps + own
    kind = dataset.get("type")
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    if not inner and "pipeline" in dataset and getattr(kind, "__module__", "").startswith(_STOCK):
        yield path, own


def _scores_labels(cfg: Config, loader: str) -> bool:
    """Whether an evaluator of mmseg compares what the loader gives with label maps."""
    evaluator = cfg.get(loader.replace("dataloader", "evaluator")) or []
    for metric in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        kind = METRICS.get(type_name(metric)) if hasattr(metric, "get") else None
        stock = getattr(kind, "__module__", "").startswith(_STOCK)
        if stock and not metric.get("format_only"):
            return True
    return False


def _who_needs(loader: str) -> str:
    return "training" if loader.startswith("train") else loader.replace("dataloader", "evaluator")


def _warn_of_large_crops(cfg: Config, loader: str) -> None:
    size = ((cfg.get("model") or {}).get("data_preprocessor") or {}).get("size")
    for path, steps in _pipelines((cfg.get(loader) or {}).get("dataset"), f"{loader}.dataset"):
        crops = [step.get("crop_size") for step in steps if type_name(step) == "RandomCrop"]
        if not size or not crops or crops[-1] is None:
            continue
        crop = crops[-1] if isinstance(crops[-1], (list, tuple)) else [crops[-1]] * 2
        if any(side > most for side, most in zip(crop, size, strict=False)):
            print_log(
                f"{path}.pipeline crops to {tuple(crop)}, model.data_preprocessor.size is "
                f"{tuple(size)}: batches have the size of the crops, so give both the same",
                level=logging.WARNING,
            )
