"""What options of stock classes may be, where neither their annotation nor the class says so."""

import difflib
import math
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from mmengine.registry import OPTIMIZERS


class Range(NamedTuple):
    """How a range reads, and whether a value lies in it; None always does."""

    says: str
    holds: Callable[[Any], bool]


def _is_number(value: Any, kind: type | tuple[type, ...] = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _many(value: Any) -> Iterable[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def _one_of(*names: str) -> Range:
    """One of some names, or a list of them."""
    return Range(f"one of {', '.join(names)}", lambda value: all(v in names for v in _many(value)))


def _no_slip(says: str, known: Callable[[], Iterable[str]], alike: float = 0.85) -> Range:
    """Any name but one that is nearly a known one; by case alone where ``alike`` is 1."""

    def holds(value: Any) -> bool:
        lower = {str(name).lower() for name in known()}
        return not isinstance(value, str) or (
            value in known() or not difflib.get_close_matches(value.lower(), lower, 1, alike)
        )

    return Range(says, holds)


def _covers(crop: Any, stride: Any) -> bool:
    """Whether windows leave no gaps."""
    return all(step <= side for side, step in zip(_many(crop), _many(stride), strict=False))


_POSITIVE = Range("a positive integer", lambda v: _is_number(v, int) and v > 0)
_SHARE = Range("a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1)
_METRICS = ("aAcc", "mIoU", "mAcc", "mDice", "mFscore", "mPrecision", "mRecall")

#: Class, or a base of it, and option; without a class it is the option of any.
OF_CLASSES: dict[str, Range] = {
    "drop_path_rate": _SHARE,
    "VisionTransformer.num_layers": _POSITIVE,
    "BEiT.num_layers": _POSITIVE,
    "BaseDecodeHead.num_classes": _POSITIVE,
    "BaseDecodeHead.channels": _POSITIVE,
    "BaseDecodeHead.threshold": _SHARE,
    "SegDataPreProcessor.std": Range(
        "positive numbers, one a band", lambda v: all(_is_number(s) and s > 0 for s in _many(v))
    ),
    "SegDataPreProcessor.size": Range(
        "a height and a width", lambda v: isinstance(v, (list, tuple)) and len(v) == 2
    ),
    "DataLoader.batch_size": _POSITIVE,
    "DataLoader.num_workers": Range(
        "an integer from 0 on", lambda v: _is_number(v, int) and v >= 0
    ),
    "BaseSegDataset.metainfo": Range(
        "a dict whose classes are names",
        lambda v: all(isinstance(name, str) for name in _many(v.get("classes") or [])),
    ),
    "BaseSegDataset.data_root": Range("a folder", lambda v: isinstance(v, (str, os.PathLike))),
    "IoUMetric.iou_metrics": _one_of("mIoU", "mDice", "mFscore"),
    "IterBasedTrainLoop.val_interval": _POSITIVE,
    "EpochBasedTrainLoop.val_interval": _POSITIVE,
    "CheckpointHook.save_best": _no_slip(
        f"auto or one of {', '.join(_METRICS)}", lambda: _METRICS, 1.0
    ),
    "CheckpointHook.rule": _one_of("greater", "less"),
    "LogProcessor.window_size": _POSITIVE,
}

#: Options of parts that are no class, by their place in a config.
OF_PLACES: dict[str, Range] = {
    "default_scope": _no_slip(
        "mmseg or the scope of another package", lambda: ("mmseg", "mmengine")
    ),
    "randomness.seed": Range(
        "an integer from 0 to 2^32 - 1", lambda v: _is_number(v, int) and 0 <= v < 2**32
    ),
    "model.test_cfg.mode": _no_slip("whole or slide", lambda: ("whole", "slide")),
    "model.test_cfg": Range(
        "a dict with crop_size, and a stride no larger, where its mode is slide",
        lambda v: (
            v.get("mode") != "slide"
            or ({"crop_size", "stride"} <= v.keys() and _covers(v["crop_size"], v["stride"]))
        ),
    ),
    "optim_wrapper.clip_grad.max_norm": Range(
        "a positive number", lambda v: _is_number(v) and 0 < v <= math.inf
    ),
    "optim_wrapper.optimizer.type": _no_slip(
        "a registered optimizer", lambda: OPTIMIZERS.module_dict
    ),
}


def range_of(kind: type, option: str) -> Range | None:
    """What an option of a class may be, by its bases too; None where nothing is said of it."""
    names = [f"{base.__name__}.{option}" for base in kind.__mro__]
    return next((OF_CLASSES[name] for name in [*names, option] if name in OF_CLASSES), None)
