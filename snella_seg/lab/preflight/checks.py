"""What would let a training silently end otherwise than its config says."""

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn

from ...configs import type_name
from ...hooks import SparsityAllocationHook
from ...inject import adapter_keys
from ...loading import some
from ...models import SnellaBackbone, describe_backbone
from ..text import size
from .forecast import Forecast
from .probe import ProbeHook


def any_wrapper(model: nn.Module) -> SnellaBackbone | None:
    """The SnellaBackbone of a model, or None."""
    return next((m for m in model.modules() if isinstance(m, SnellaBackbone)), None)


def problems(report: Forecast, runner: Runner, cfg: Config, hook: ProbeHook | None) -> list[str]:
    """All that would silently go wrong; see :func:`snella_seg.lab.preflight.preflight`."""
    found = [
        *_base(report, runner, cfg),
        *_allocation(report, runner),
        *_classes(runner, cfg),
        *_schedule(runner, cfg),
    ]
    if report.disk_bytes and report.disk_bytes > report.disk_free_bytes:
        found.append(
            f"checkpoints need {size(report.disk_bytes)}, {size(report.disk_free_bytes)} are free: "
            "keep fewer (default_hooks.checkpoint.max_keep_ckpts) or use another --work-dir"
        )
    if hook is not None:
        found += _probe(runner, hook)
    return found


def warnings(report: Forecast, runner: Runner) -> list[str]:
    """What is worth a look, though it may be meant so."""
    found = []
    if runner._val_loop is None:
        found.append("there is no validation (val_dataloader, val_cfg, val_evaluator)")
    wait, step = report.data_seconds, report.seconds_per_iteration
    if wait and step and wait > 0.2 * step:
        found.append(
            f"{wait / step:.0%} of an iteration is spent waiting for data: more num_workers in "
            "train_dataloader"
        )
    return found


def _base(report: Forecast, runner: Runner, cfg: Config) -> list[str]:
    wrapper = any_wrapper(runner.model)
    if wrapper is None:
        return ["model.backbone is no SnellaBackbone: nothing of it is adapted or frozen"]
    if cfg.get("load_from") or getattr(runner.model, "init_cfg", None):
        return []
    if wrapper.base_source is None and wrapper.named_source is None:
        return [
            "the base has no pretrained weights, so frozen random weights would be adapted: set "
            "model.backbone.base_checkpoint, or the inner backbone's init_cfg"
        ]
    if report.random_base and wrapper.method.trainable == ("*",):
        return [
            f"{wrapper.named_source} lacks {some(report.random_base)}: full tuning would begin "
            "with random weights"
        ]
    return []


def head_problems(model: nn.Module) -> list[str]:
    """Heads and necks that expect other channels than the backbone's maps have."""
    wrapper = any_wrapper(model)
    if wrapper is None:
        return []
    channels, found = list(describe_backbone(wrapper).channels), []
    behind = ["neck"] if getattr(model, "neck", None) is not None else ["decode_head"]
    behind += ["auxiliary_head"] if behind == ["decode_head"] else []
    for name in behind:
        part = getattr(model, name, None)
        for one in part if isinstance(part, nn.ModuleList) else [part]:
            wanted, index = getattr(one, "in_channels", None), getattr(one, "in_index", None)
            if wanted is None or getattr(one, "input_transform", None) == "resize_concat":
                continue
            several = isinstance(wanted, (list, tuple))
            indices = index if isinstance(index, (list, tuple)) else None
            indices = indices or (
                range(len(channels)) if several else [-1 if index is None else index]
            )
            if any(not -len(channels) <= i < len(channels) for i in indices):
                found.append(
                    f"{name}.in_index is {index}, the backbone gives {len(channels)} maps: set "
                    f"model.{name}.in_index, or out_indices of the backbone"
                )
                continue
            given = [channels[i] for i in indices]
            if (list(wanted) if several else [wanted]) != given:
                value = given if several else given[0]
                found.append(
                    f"{name}.in_channels is {wanted}, the maps of the backbone have {given} "
                    f"channels: set model.{name}.in_channels={value}"
                )
    return found


def _allocation(report: Forecast, runner: Runner) -> list[str]:
    hooks = [h for h in runner.hooks if isinstance(h, SparsityAllocationHook)]
    wrapper = any_wrapper(runner.model)
    wanted = wrapper is not None and wrapper.method.allocation is not None
    if wanted and report.weights and not hooks:
        return [
            "custom_hooks holds no SparsityAllocationHook: sparsities stay as they begin, matrices "
            "do not compete"
        ]
    if len(hooks) > 1:
        return [f"custom_hooks holds {len(hooks)} SparsityAllocationHooks; one is right"]
    if not hooks or hooks[0].mode in (None, "fixed"):
        return []
    found = []
    if report.nonzero_end > report.nonzero:
        found.append(
            f"the budget grows, from {report.nonzero:,} to {report.nonzero_end:,} weights: "
            "target_sparsity of SparsityAllocationHook is below initial_sparsity of the adapters"
        )
    return found


def _classes(runner: Runner, cfg: Config) -> list[str]:
    found = []
    for loader in ("train_dataloader", "val_dataloader"):
        dataset = (cfg.get(loader) or {}).get("dataset") or {}
        for key in ("reduce_zero_label", "label_map"):
            if key in (dataset.get("metainfo") or {}):
                found.append(
                    f"{key} in {loader}.dataset.metainfo has no effect, mmseg overwrites it: "
                    + (
                        f"set {loader}.dataset.reduce_zero_label"
                        if key == "reduce_zero_label"
                        else "name the classes that are left in metainfo.classes"
                    )
                )
    loops = (runner._train_loop, runner._val_loop)
    datasets = [getattr(getattr(x, "dataloader", None), "dataset", None) for x in loops]
    reduces = [getattr(d, "reduce_zero_label", None) for d in datasets]
    if None not in reduces and reduces[0] != reduces[1]:
        found.append(
            f"reduce_zero_label is {reduces[0]} in training and {reduces[1]} in validation: "
            "labels are shifted against each other"
        )
    return found


def _schedule(runner: Runner, cfg: Config) -> list[str]:
    found = []
    checkpoint = next((h for h in runner.hooks if isinstance(h, CheckpointHook)), None)
    by_epoch = isinstance(runner._train_loop, EpochBasedTrainLoop)
    length = {True: cfg.train_cfg.get("max_epochs"), False: cfg.train_cfg.get("max_iters")}
    if checkpoint is None:
        found.append("no checkpoint would be written: default_hooks.checkpoint is missing")
    elif checkpoint.by_epoch and not by_epoch:
        found.append(
            "default_hooks.checkpoint counts epochs in a loop of iterations, so none but the last "
            "checkpoint could be written; set by_epoch=False"
        )
    elif not checkpoint.save_last and checkpoint.interval > (length[checkpoint.by_epoch] or 0):
        found.append(f"no checkpoint would be written: its interval is {checkpoint.interval}")
    schedulers = cfg.get("param_scheduler") or []
    schedulers = schedulers if isinstance(schedulers, list) else [schedulers]
    ends = [s["end"] for s in schedulers if s.get("end")]
    for scheduler in schedulers:
        end, whole = scheduler.get("end"), length[scheduler.get("by_epoch", True)]
        if not end or not whole:
            continue
        if end == max(ends) and end < whole and _goes_to_zero(scheduler):
            found.append(
                f"the learning rate is 0 from {end} on, {whole - end} of {whole} steps are lost: "
                "set end of the last param_scheduler"
            )
        elif end > 1.05 * whole:
            found.append(
                f"{type_name(scheduler)} ends at {end}, the run at {whole}: the learning rate does "
                "not come down as planned; set end of param_scheduler"
            )
    return found


def _goes_to_zero(scheduler: dict) -> bool:
    if type_name(scheduler) not in ("PolyLR", "CosineAnnealingLR"):
        return False
    return not scheduler.get("eta_min") and not scheduler.get("eta_min_ratio")


def _probe(runner: Runner, hook: ProbeHook) -> list[str]:
    found = []
    if any(loss != loss or abs(loss) == float("inf") for loss in hook.losses):
        found.append(f"the loss is not finite within {len(hook.losses)} iterations: {hook.losses}")
    learnable = (n for n, p in runner.model.named_parameters() if p.requires_grad)
    ours = adapter_keys(runner.model)
    dead = [n for n in learnable if n in ours and n not in hook.alive]
    if dead and hook.steps > 1:
        found.append(f"{len(dead)} adapter parameters get no gradient: {some(dead)}")
    return found
