"""Builds a training as its config says, begins it in a temporary folder, lists what it found."""

import contextlib
import copy
import logging
import math
import shutil
import tempfile
from pathlib import Path

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.logging import MMLogger
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn

from ... import register  # noqa: F401
from ...budget import SparsityAllocator
from ...hooks.epochs import iterations_per_epoch
from ...inject import (
    AUTO_TRAINABLE,
    adapters_disabled,
    cover,
    covers,
    find_matrices,
    list_adapters,
    summarize,
)
from ...loading import fit_base_file, some
from ...models.bands import band_problem
from ...models.label_values import class_mismatches, label_ranges
from . import checks
from .forecast import Forecast
from .labels import label_problems, survey_labels
from .probe import ProbeHook, average_budget, probe


def preflight(cfg: Config, iterations: int = 6) -> Forecast:
    """Look at the training of a config before it runs.

    The real training is begun, with its data, hooks and optimizer, in a temporary work dir, and
    let go of after a few iterations: at the initial budget, and at the last one. Nothing is left.

    Args:
        cfg: fitted to the machine (:func:`snella_seg.cli.machine.fit_to_machine`); left as it is.
        iterations: how many are timed at each budget; 0 builds only, and measures nothing.

    Returns:
        What was found; ``problems`` says what would silently go wrong.

    Raises:
        Whatever the training itself would raise at its start.
    """
    work_dir = cfg.get("work_dir") or "work_dirs"
    cfg = copy.deepcopy(cfg)
    report = Forecast()
    with tempfile.TemporaryDirectory(prefix="preflight") as folder:
        cfg.work_dir, cfg.log_level, cfg.resume = folder, "CRITICAL", False
        cfg.visualizer = {
            **(cfg.get("visualizer") or dict(type="Visualizer", name="preflight")),
            "vis_backends": [dict(type="LocalVisBackend")],
        }
        said = _Warnings()
        runner = Runner.from_cfg(cfg)
        logger = MMLogger.get_current_instance()
        logger.addHandler(said)
        try:
            _describe(report, runner, cfg)
            wrong, look = _labels(runner)
            wrong = checks.head_problems(runner.model) + wrong
            wrong += [problem] if (problem := band_problem(runner.model)) else []
            iterations = 0 if wrong else iterations  # it would only stumble over them
            hook = _measure(report, runner, iterations) if iterations else None
        finally:
            logger.removeHandler(said)
    report.disk_free_bytes = shutil.disk_usage(_existing(Path(work_dir))).free
    report.problems = wrong + checks.problems(report, runner, cfg, hook)
    report.warnings = checks.warnings(report, runner) + look + said.lines
    return report


def _labels(runner: Runner) -> tuple[list[str], list[str]]:
    """Problems and warnings of the label maps of both sets."""
    wrong, look = [], []
    ranges = label_ranges(runner.model)
    for loop, what in ((runner._train_loop, "training set"), (runner._val_loop, "validation set")):
        dataset = getattr(getattr(loop, "dataloader", None), "dataset", None)
        survey = None if dataset is None else survey_labels(dataset, what)
        if survey is not None:
            classes = (getattr(dataset, "metainfo", None) or {}).get("classes")
            problems, warnings = label_problems(survey, ranges, classes, what)
            wrong, look = wrong + problems, look + warnings
            if loop is runner._train_loop:
                wrong += class_mismatches(runner.model, classes)
    return wrong, look


#: Warnings of mmengine that tell of nothing in the training.
_NOISE = ("deprecated", "prefix is not set in metric")


class _Warnings(logging.Handler):
    """Keeps what is said as a warning, once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = " ".join(record.getMessage().split())
        if line not in self.lines and not any(noise in line for noise in _NOISE):
            self.lines.append(line)


def _describe(report: Forecast, runner: Runner, cfg: Config) -> None:
    """What can be told from the model and the loops, before anything runs."""
    model = runner.model
    wrapper = checks.any_wrapper(model)
    adapters = list_adapters(model)
    report.method = f"{wrapper.method.label}: {wrapper.method.about}" if wrapper else "none"
    report.summary = summarize(model)
    _describe_base(report, wrapper)
    if wrapper is not None:
        adapted = set(list_adapters(wrapper.backbone))
        report.coverage = cover(wrapper.backbone, adapted).line()
        matrices = find_matrices(wrapper.backbone)
        report.unmatched = [m.name for m in matrices if m.name not in adapted]
    backbone = getattr(model, "backbone", model)
    report.learnable = _learnable(backbone)
    report.learnable_heads = _learnable(model) - report.learnable
    report.weights = sum(adapter.size for adapter in adapters.values())
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    report.iterations = runner.max_iters
    with contextlib.suppress(ValueError):  # a dataset without length
        report.epochs = runner.max_iters / iterations_per_epoch(runner)
    _plan_checkpoints(report, runner)
    _plan_validations(report, runner)


def _learnable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _describe_base(report: Forecast, wrapper) -> None:
    """How the base gets its weights."""
    if wrapper is None:
        report.base = "the backbone is no SnellaBackbone: nothing is known"
        return
    if wrapper.base_source is not None:
        report.base = f"loaded when it was built: {wrapper.base_source}"
        return
    with adapters_disabled(wrapper.backbone):
        found = fit_base_file(wrapper.backbone, wrapper.bands)
    if found is None:
        report.base = "none: no file is named"
        return
    fit, conversion = found
    report.random_base = [n for n in fit.fresh if not any(covers(p, n) for p in AUTO_TRAINABLE)]
    parts = [f"{fit.expected - len(fit.missing) - len(fit.fresh)} of {fit.expected} tensors found"]
    for names, what in (
        (conversion.resized or fit.misshapen, "resized"),
        (fit.missing, "missing"),
        (fit.fresh, "not in it, trained from scratch"),
        (fit.neutral, "not in it and without effect"),
        (fit.unused, "not used"),
    ):
        parts += [f"{len(names)} {what} ({some(names, 3)})"] if names else []
    layout = f" ({conversion.layout})" if conversion.layout else ""
    report.base = f"{wrapper.named_source}{layout}: " + "; ".join(parts)


def _plan_checkpoints(report: Forecast, runner: Runner) -> None:
    """How many checkpoints are there in the end."""
    hook = next((h for h in runner.hooks if isinstance(h, CheckpointHook)), None)
    if hook is None:
        return
    length = runner.max_epochs if hook.by_epoch else runner.max_iters
    written = length // hook.interval if hook.interval > 0 else 0
    written += int(hook.save_last and (hook.interval <= 0 or length % hook.interval > 0))
    kept = min(written, hook.max_keep_ckpts) if hook.max_keep_ckpts > 0 else written
    report.checkpoints = kept + (1 if hook.save_best else 0)


def _plan_validations(report: Forecast, runner: Runner) -> None:
    """How many validations there are, and of how many images."""
    if runner._val_loop is None:
        return
    runner._val_loop = runner.build_val_loop(runner._val_loop)
    loop = runner.train_loop
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    length = loop.max_epochs if by_epoch else loop.max_iters
    first = max(1, math.ceil(loop.val_begin / loop.val_interval))
    report.validations = max(0, length // loop.val_interval - first + 1)
    report.validations += int(length % loop.val_interval > 0)  # there is one at the end
    report.validation_images = len(runner.val_loop.dataloader.dataset)


def _measure(report: Forecast, runner: Runner, iterations: int) -> ProbeHook:
    """Begin the training; fill in what it costs and what is allocated when."""
    hook, found = probe(runner, iterations)
    for name, value in found.items():
        setattr(report, name, value)
    if hook.allocation is not None and hook.allocation.allocator is not None:
        report.allocations = _allocations(hook.allocation.allocator, hook.period, report.iterations)
        report.due_at = hook.allocation.due_at
    if report.allocations:
        share = average_budget(report.allocations, report.iterations)
        start, end = report.seconds_at_start, report.seconds_at_end
        report.seconds_per_iteration = share * start + (1 - share) * end
        report.nonzero, report.nonzero_end = (report.allocations[i][2] for i in (0, -1))
    else:
        report.seconds_per_iteration = report.seconds_at_start
        report.nonzero = report.nonzero_end = report.weights
    return hook


def _allocations(
    allocator: SparsityAllocator, period: int, max_iters: int
) -> list[tuple[int, int, int]]:
    """Epoch, iteration and budget of all allocations to come."""
    if allocator.mode == "fixed":
        return [(0, 0, allocator.target_budget)]
    later = range(1, (max_iters - 1) // period + 1)
    budgets = [(epoch, epoch * period, allocator.budget(epoch)) for epoch in later]
    return [(0, 0, allocator.initial_budget), *budgets]


def _existing(folder: Path) -> Path:
    """The nearest folder above that is there."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
