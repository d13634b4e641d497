"""Runs the first iterations of a training, then lets go of it, and measures."""

import math
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner
from torch.optim import Optimizer

from ...hooks import SparsityAllocationHook
from ...hooks.of_runner import optim_wrappers

#: Iterations before those that are timed; the first ones warm up libraries and loaders.
WARMUP = 3
#: No more iterations than three are timed once those took as many seconds.
LONG = 60.0
#: Longer than any probe, in iterations.
_NEVER = 10**9


class ProbeDone(Exception):
    """Ends a training that was only begun."""


class ProbeHook(Hook):
    """Times iterations at the initial budget, lets matrices compete for the last one, times again.

    Args:
        iterations: how many are timed at each of the two budgets.
    """

    priority = "LOWEST"

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations
        self.spans: dict[str, list[float]] = {"start": [], "end": []}
        self.waits: list[float] = []
        self.losses: list[float] = []
        self.steps, self.alive = 0, set[str]()
        self.period: int | None = None
        self.reallocation: float | None = None
        self.allocation: SparsityAllocationHook | None = None
        self._phase, self._seen = "start", 0

    def before_train(self, runner) -> None:
        loop = runner.train_loop  # the probe alone says when it ends and when matrices compete
        loop.val_interval = loop._max_iters = _NEVER
        if hasattr(loop, "_max_epochs"):
            loop._max_epochs = _NEVER
        self.allocation = next(
            (h for h in runner.hooks if isinstance(h, SparsityAllocationHook)), None
        )
        if self.allocation is not None and self.allocation.mode is not None:
            self.period, self.allocation.period = self.allocation.period, _NEVER
        self._watch_gradients(runner)
        self._last = time.perf_counter()

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self._waited = time.perf_counter() - self._last

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._seen += 1
        if self._seen > WARMUP:
            self.spans[self._phase].append(now - self._last)
            self.waits.append(self._waited)
        self._take_in(outputs)
        spans = self.spans[self._phase]
        if len(spans) >= self.iterations or (len(spans) >= 3 and sum(spans) > LONG):
            self._next_phase(runner)
        self._last = time.perf_counter()

    def _take_in(self, outputs) -> None:
        loss = (outputs or {}).get("loss")
        if loss is not None:
            self.losses.append(float(loss.detach()))

    def _next_phase(self, runner) -> None:
        hook = self.allocation
        allocates = hook is not None and hook.mode in ("competition", "uniform")
        if self._phase == "end" or not allocates:
            raise ProbeDone
        started = time.perf_counter()
        hook.reallocate(runner, hook.allocator.total_epochs - 1)
        self.reallocation = time.perf_counter() - started
        self._phase, self._seen = "end", 1

    def _watch_gradients(self, runner) -> None:
        """Note which learnable parameters ever get a gradient that is not zero."""
        names = {id(p): name for name, p in runner.model.named_parameters()}
        first, *_ = held = optimizers(runner)

        def look(optimizer, args, kwargs) -> None:
            self.steps += optimizer is first
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    name, grad = names.get(id(parameter)), parameter.grad
                    if name not in self.alive and grad is not None and grad.any():
                        self.alive.add(name)

        for optimizer in held:
            optimizer.register_step_pre_hook(look)


def optimizers(runner: Runner) -> list[Optimizer]:
    """The optimizers of a run that was begun; mostly one."""
    return [wrapper.optimizer for wrapper in optim_wrappers(runner)]


def probe(runner: Runner, iterations: int, images: int = 3) -> tuple[ProbeHook, dict]:
    """Begin a training, validate a few images, write a checkpoint, and measure.

    Args:
        runner: in whose work dir the checkpoint is written; it is of no use afterwards.
        iterations: how many are timed at each budget.
        images: how many are validated.

    Returns:
        The hook that saw the iterations, and a dict of the measured fields of
        :class:`snella_seg.lab.preflight.forecast.Forecast`.
    """
    hook = ProbeHook(iterations)
    runner.register_hook(hook)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        runner.train()
    except ProbeDone:
        pass
    found: dict = {"data_seconds": _median(hook.waits)}
    found["seconds_at_start"] = _median(hook.spans["start"])
    found["seconds_at_end"] = _median(hook.spans["end"]) or found["seconds_at_start"]
    found["reallocation_seconds"] = hook.reallocation
    if runner.val_loop is not None:
        found["seconds_per_validation_image"] = _validate(runner, images)
    found["checkpoint_bytes"] = _save(runner)
    found["peak_bytes"] = peak_memory()
    if torch.cuda.is_available():
        found["gpu_peak_bytes"] = torch.cuda.max_memory_allocated()
    return hook, found


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _validate(runner: Runner, images: int) -> float | None:
    """Seconds per image; the first batch, which merges the deltas, does not count."""
    runner.model.eval()
    times, count = [], 0
    last = time.perf_counter()
    for index, batch in enumerate(runner.val_loop.dataloader):
        runner.val_loop.run_iter(index, batch)
        now = time.perf_counter()
        size = len(batch["inputs"]) if "inputs" in batch else 1
        times.append((now - last) / size)
        last, count = now, count + size
        if count > images:
            break
    runner.model.train()
    return _median(times[1:] or times)


def _save(runner: Runner) -> int | None:
    """Bytes of a checkpoint as the run's hook writes it."""
    hook = next((h for h in runner.hooks if isinstance(h, CheckpointHook)), None)
    if hook is None:
        return None
    runner.save_checkpoint(
        runner.work_dir,
        "probe.pth",
        save_optimizer=hook.save_optimizer,
        save_param_scheduler=hook.save_param_scheduler,
        by_epoch=hook.by_epoch,
        backend_args=hook.backend_args,
    )
    path = Path(runner.work_dir) / "probe.pth"
    written = path.stat().st_size
    path.unlink()
    return written


def peak_memory() -> int:
    """The most main memory that this process has held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def average_budget(allocations: list[tuple[int, int, int]], iterations: int) -> float:
    """Share of the way from the last budget to the first one at which the average iteration is."""
    first, last = allocations[0][2], allocations[-1][2]
    if first == last:
        return 1.0
    bounds = [iteration for _, iteration, _ in allocations[1:]] + [iterations]
    starts = [iteration for _, iteration, _ in allocations]
    total = sum(
        (end - start) * budget
        for (_, _, budget), start, end in zip(allocations, starts, bounds, strict=True)
    )
    share = (total / iterations - last) / (first - last)
    return share if math.isfinite(share) else 1.0
