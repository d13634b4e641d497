"""Parts of a config that do not go together, where it would show late or never."""

import sys
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

from ..configs import type_name

#: What mmseg's metric gives, besides values for each class.
_SCORES = {"aAcc", "mIoU", "mAcc", "mDice", "mFscore", "mPrecision", "mRecall"}
_LOOPS = {
    "train": ("train_dataloader", "train_cfg", "optim_wrapper"),
    "val": ("val_dataloader", "val_cfg", "val_evaluator"),
    "test": ("test_dataloader", "test_cfg", "test_evaluator"),
}


def check_run(cfg: Config) -> None:
    """Refuse parts of a config that contradict each other.

    Raises:
        ValueError: naming the parts, and what goes with each.
    """
    for trouble in (
        *_functions(cfg),
        *_incomplete_loops(cfg),
        *_endless_epochs(cfg),
        *_no_checkpoint(cfg),
        *_unknown_best(cfg),
        *_logits_of_many_classes(cfg),
    ):
        raise ValueError(trouble)


def _functions(node: Any, path: str = "") -> Iterator[str]:
    """Functions of the config's own, which the copy of the config in the work dir cannot hold."""
    if hasattr(node, "items"):
        pairs = [(key, value) for key, value in node.items() if path or not callable(value)]
    elif isinstance(node, (list, tuple)):
        pairs = list(enumerate(node))
    else:
        module = sys.modules.get(getattr(node, "__module__", None) or "")
        name = getattr(node, "__name__", None)
        if callable(node) and name and getattr(module, name, None) is not node:
            yield (
                f"{path} is a function that the config itself defines ({name}), so the config "
                "cannot be written down: put it into a module, and give its registered name"
            )
        return
    for key, value in pairs:
        yield from _functions(value, f"{path}.{key}".lstrip("."))


def _incomplete_loops(cfg: Config) -> Iterator[str]:
    for loop, parts in _LOOPS.items():
        given = [part for part in parts if cfg.get(part) is not None]
        missing = [part for part in parts if part not in given]
        if given and missing and loop != "train":
            yield (
                f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing or None, "
                f"while {' and '.join(given)} {'is' if len(given) == 1 else 'are'} given: give all "
                "three, or set all three to None"
            )


def _endless_epochs(cfg: Config) -> Iterator[str]:
    """Epochs over a sampler that never ends, of which the first would last forever."""
    sampler = type_name((cfg.get("train_dataloader") or {}).get("sampler") or {})
    if _counts_epochs(cfg) and sampler == "InfiniteSampler":
        yield (
            "train_cfg counts epochs (EpochBasedTrainLoop), and an epoch of InfiniteSampler never "
            "ends: set train_dataloader.sampler.type to DefaultSampler, or train_cfg.type to "
            "IterBasedTrainLoop with max_iters"
        )


def _counts_epochs(cfg: Config) -> bool:
    loop = cfg.get("train_cfg") or {}
    kind = type_name(loop) or ("EpochBasedTrainLoop" if loop.get("by_epoch") else "")
    return kind == "EpochBasedTrainLoop"


def _no_checkpoint(cfg: Config) -> Iterator[str]:
    """A run that would write no checkpoint, though it asks for some."""
    hook = (cfg.get("default_hooks") or {}).get("checkpoint") or {}
    epochs = hook.get("by_epoch", True)
    length = (cfg.get("train_cfg") or {}).get("max_epochs" if epochs else "max_iters")
    interval = hook.get("interval", -1)
    if (
        isinstance(length, int)
        and isinstance(interval, int)
        and epochs == _counts_epochs(cfg)
        and interval > length
        and not hook.get("save_last", True)
        and not hook.get("save_best")
    ):
        yield (
            f"default_hooks.checkpoint would write nothing: its interval is {interval}, the run "
            f"has {length} {'epochs' if epochs else 'iterations'}, and save_last=False leaves the "
            "last out too; lower the interval, or leave save_last out"
        )


def _unknown_best(cfg: Config) -> Iterator[str]:
    """A best score that mmseg's metric does not give, which the first validation would show."""
    best = ((cfg.get("default_hooks") or {}).get("checkpoint") or {}).get("save_best")
    metrics = cfg.get("val_evaluator") or []
    metrics = metrics if isinstance(metrics, (list, tuple)) else [metrics]
    known = all(
        type_name(metric) in ("IoUMetric", "ClassIoUMetric") and not metric.get("prefix")
        for metric in metrics
    )
    for name in [best] if isinstance(best, str) else best or []:
        if metrics and known and name != "auto" and name not in _SCORES and "/" not in name:
            yield (
                f"default_hooks.checkpoint.save_best must be auto or one of "
                f"{', '.join(sorted(_SCORES))}, which val_evaluator gives, got {name!r}"
            )


def _logits_of_many_classes(cfg: Config) -> Iterator[str]:
    """Heads with one logit for more than a class and its background."""
    for key in ("decode_head", "auxiliary_head"):
        heads = (cfg.get("model") or {}).get(key) or []
        for head in heads if isinstance(heads, (list, tuple)) else [heads]:
            if head.get("out_channels") == 1 and head.get("num_classes", 2) > 2:
                yield (
                    f"model.{key} has one logit (out_channels=1), which tells two classes apart, "
                    f"and num_classes={head['num_classes']}: leave out_channels out"
                )
