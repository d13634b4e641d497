"""Lets matrices compete for the budget while training runs."""

import math
from pathlib import Path

import torch
from mmengine.dist import broadcast, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..budget import SizeGuard, SparsityAllocator, append_line, current_delta, start_history
from ..budget.wording import allocation_text, no_reallocation_text, resumed_text
from ..functional import SCHEDULES
from ..inject import (
    METHODS,
    Method,
    accumulate_gradients,
    allocation_mode,
    drop_gradients,
    summarize,
)
from ..inject.methods import ALLOCATIONS
from ..layers.typed_options import typed_options
from .epochs import images_per_iteration, iterations_between
from .finite_steps import FiniteStepsHook
from .label_check import LabelCheckHook
from .of_runner import micro_batches, optim_wrappers, plain_model, steps_within, will_update
from .sharding import check_sharding


@HOOKS.register_module()
class SparsityAllocationHook(Hook):
    """Once per epoch, shares the scheduled number of non-zero delta weights among all matrices.

    Importances are taken just before each optimizer step, where gradients are unscaled, summed
    over accumulation and reduced over ranks. The budget falls from what the adapters start with
    to ``1 - target_sparsity`` of all weights, on a curve
    (:func:`snella_seg.functional.budget_schedule`), and is split by
    :func:`snella_seg.functional.allocate_budget`; :class:`snella_seg.budget.SparsityAllocator` does
    the work, this hook says when.

    With ``reallocate='when_due'`` the budget falls as scheduled all the same, but is shared by the
    scores of the last time until those of now would move more than ``due_at`` of it between
    matrices (:func:`snella_seg.functional.moved_share`).

    Where a step adds up several iterations (``accumulative_counts``), adapters are told, and make
    their deltas once (:func:`snella_seg.inject.accumulate_gradients`).

    An epoch is a pass over the training set, in epoch-based and in iteration-based loops. State
    travels in checkpoints; each allocation is a line of ``sparsity_history.jsonl`` in the work
    dir, and scalars (``snella/budget``, ``snella/churn``, ``snella/moved``,
    ``snella/sparsity_<kind>``) for the visualizer. Churn is the share of the weights in force that
    changed hands since the last allocation: of those that entered and those that left a matrix, the
    lesser number. A delta that is larger than its frozen weight is warned of, once. A
    :class:`FiniteStepsHook` and a :class:`LabelCheckHook` come along where the config has none.

    Args:
        target_sparsity: share of all adapted weights that are zero in the end, in [0, 1).
        interval: iterations between reallocations; None for one epoch. A run that is resumed with
            another number of images an iteration (more processes, larger batches) keeps to the
            images that lay between them.
        warmup_epochs: intervals that keep the initial budget.
        final_epochs: intervals that keep the target budget; 1 reaches it in the last one, 0 is
            the published schedule, which ends just above.
        importance: ``'sensitivity'``, ``'magnitude'`` or ``'frobenius'``, see
            :class:`snella_seg.budget.ImportanceTracker`.
        min_density: share of its weights that every matrix keeps, so that a starved one can win
            weights back; lowered evenly where the budget cannot pay for it. 0 is the published
            behaviour.
        beta1, beta2: decay rates of importance and uncertainty.
        allocation: ``'competition'``, ``'uniform'`` (the budget is scheduled, but every matrix is
            as dense as the others) or ``'fixed'`` (the target sparsity in every matrix, from the
            first iteration on). None for what the backbone's ``method`` asks for; another way than
            the method has is refused.
        schedule: the curve on which the budget falls: ``'cubic'``, as published, ``'late'``, slow
            at first, or ``'dense_first_half'``, see :data:`snella_seg.functional.SCHEDULES`.
        reallocate: ``'always'``, at each interval, or ``'when_due'``; has no effect where matrices
            do not compete.
        due_at: share of the budget, in [0, 1], that must move for a reallocation to be due.

    Raises:
        ValueError: on options out of range, a model without adapters, a run shorter than warm-up
            and final epochs, or than the time to the first reallocation. All at the start.
    """

    @typed_options
    def __init__(
        self,
        target_sparsity: float = 0.8,
        interval: int | None = None,
        warmup_epochs: int = 0,
        final_epochs: int = 1,
        importance: str = "sensitivity",
        min_density: float = 1e-3,
        beta1: float = 0.85,
        beta2: float = 0.85,
        allocation: str | None = None,
        schedule: str = "cubic",
        reallocate: str = "always",
        due_at: float = 0.1,
    ) -> None:
        for name, value, known in (
            ("allocation", ALLOCATIONS[0] if allocation is None else allocation, ALLOCATIONS),
            ("schedule", schedule, SCHEDULES),
            ("reallocate", reallocate, ("always", "when_due")),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(known)}")
        for name, value in (("target_sparsity", target_sparsity), ("min_density", min_density)):
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), got {value}")
        if not 0.0 <= due_at <= 1.0:
            raise ValueError(f"due_at must lie in [0, 1], got {due_at}")
        if interval is not None and (interval != int(interval) or interval < 1):
            raise ValueError(f"interval must be a positive number of iterations, got {interval}")
        if warmup_epochs < 0 or final_epochs < 0:
            raise ValueError(
                f"warmup_epochs and final_epochs must not be negative, got {warmup_epochs} and "
                f"{final_epochs}"
            )
        self.target_sparsity, self.interval = target_sparsity, interval
        self.schedule = schedule
        self.due_at = due_at if reallocate == "when_due" else None
        self.warmup_epochs, self.final_epochs = warmup_epochs, final_epochs
        self.min_density, self.allocation = min_density, allocation
        self.importance = dict(importance=importance, beta1=beta1, beta2=beta2)
        self.allocator: SparsityAllocator | None = None
        self.mode: str | None = None
        self._loaded: dict | None = None
        self._handles: list = []

    # When

    def before_run(self, runner) -> None:
        for kind in (FiniteStepsHook, LabelCheckHook):
            if not any(isinstance(hook, kind) for hook in runner.hooks):
                runner.register_hook(kind())
        drop_gradients(plain_model(runner))  # of a run that was broken off

    def before_train(self, runner) -> None:
        check_sharding(runner)
        if runner.iter > runner.max_iters:
            raise ValueError(
                f"the checkpoint is of iteration {runner.iter}, the run ends at "
                f"{runner.max_iters}: nothing is left to train; raise max_iters (or "
                "max_epochs) of train_cfg"
            )
        model = plain_model(runner)
        name, method = _method_of(model)
        self.mode = allocation_mode(name, method, self.allocation)
        if self.mode is None:
            self.allocator = None
            runner.logger.info(f"{method.label}: there is no sparsity to allocate")
            return
        before = (self._loaded or {}).get("interval") if runner.iter > 0 else None
        self.period, self._images = iterations_between(runner, self.interval, before or {})
        self.allocator = SparsityAllocator(
            model,
            total_epochs=math.ceil(runner.max_iters / self.period),
            target_sparsity=self.target_sparsity,
            mode=self.mode,
            schedule=self.schedule,
            warmup_epochs=self.warmup_epochs,
            final_epochs=self.final_epochs,
            min_density=self.min_density,
            due_at=self.due_at,
            **self.importance,
        )
        self.guard = SizeGuard(model)
        if runner.iter > 0:
            self._restore(runner)
        self._loaded = None
        if self.mode != "fixed":
            self._refuse_a_run_without(runner)
            self._watch_optimizer(runner)
        elif runner.iter == 0:
            self.allocator.spread_target(broadcast)
        if is_main_process():
            start_history(Path(runner.work_dir), runner.iter)
        runner.logger.info("SNELLA\n" + summarize(model))
        if runner.iter == 0:
            self._record(runner, 0, 0)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if self.mode is not None:
            left = self.period - runner.iter % self.period
            steps = None if runner.iter + left >= runner.max_iters else steps_within(runner, left)
            self.allocator.look_ahead(steps, steps_within(runner, self.period))
            if micro_batches(runner) > 1:
                more = left > 1 and not will_update(runner)
                accumulate_gradients(plain_model(runner), more)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        done = runner.iter + 1
        if self.mode is None or done % self.period or done >= runner.max_iters:
            return
        if self.mode == "fixed":
            adapters = self.allocator.tracker.adapters.items()
            self._warn_of_size(runner, {n: float(current_delta(a).norm()) for n, a in adapters})
        else:
            self.reallocate(runner, done // self.period)

    def after_train(self, runner) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self.mode in (None, "fixed"):
            return
        done = self.allocator.reallocations
        runner.visualizer.add_scalars({"snella/reallocations": done}, step=runner.iter)
        if done == 0:  # which nobody could know at its start
            text = no_reallocation_text(runner.iter, runner.max_iters, self.period)
            runner.logger.warning(text)

    def reallocate(self, runner, epoch: int) -> None:
        """Let the matrices compete for the budget of ``epoch``."""
        due = self.allocator.reallocate(epoch, broadcast)
        self._record(runner, epoch, runner.iter + 1, due)

    def _refuse_a_run_without(self, runner) -> None:
        """Refuse a run that ends before its first reallocation, while nothing is lost yet."""
        if self.allocator.total_epochs < 2 and self.allocator.reallocations == 0:
            raise ValueError(
                f"no reallocation would take place: the first is due after {self.period} "
                f"iterations, the run has {runner.max_iters}. Train longer, or set interval of "
                "SparsityAllocationHook to fewer iterations; with allocation='fixed' the target "
                "sparsity holds from the start"
            )

    def _watch_optimizer(self, runner) -> None:
        """Take in importances before each step of the optimizer that holds the factors."""
        watched = {id(factor) for factor in self.allocator.tracker.factors}
        for optimizer in (wrapper.optimizer for wrapper in optim_wrappers(runner)):
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            if watched <= held:
                self._handles.append(optimizer.register_step_pre_hook(self._before_step))
                return
        raise ValueError(
            "the optimizer does not hold all SNELLA factors; let one optimizer train them"
        )

    @torch.compiler.disable  # mmengine may compile a whole train step
    def _before_step(self, optimizer, args, kwargs) -> None:
        overflow = getattr(optimizer, "found_inf", None)
        if overflow is not None and float(overflow):
            return  # this step will be left out
        scale = getattr(optimizer, "grad_scale", None)  # fused optimizers unscale in their step
        self.allocator.observe(1.0 if scale is None else scale)

    # State and records

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self.allocator is not None:
            checkpoint["snella"] = {
                **self.allocator.state_dict(),
                "schedule": self._schedule(runner),
                "interval": {"given": self.interval, "images": self._images},
            }

    def _schedule(self, runner) -> dict[str, int | str | None]:
        """What the budgets to come depend on, for comparison when the run is resumed."""
        return {
            "iterations": runner.max_iters,
            "iterations between reallocations": self.period,
            "target budget": self.allocator.target_budget,
            "curve": self.schedule,
            "images an iteration": images_per_iteration(runner),
        }

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        self._loaded = checkpoint.get("snella")  # used only if this turns out to be a resume

    def _restore(self, runner) -> None:
        if self._loaded is None:
            runner.logger.warning(
                "the resumed checkpoint holds no SNELLA state: importances start from zero"
            )
            return
        self.allocator.load_state_dict(self._loaded)
        allocator = self.allocator
        text = resumed_text(
            self._schedule(runner),
            self._loaded.get("schedule") or {},
            allocator.in_force,
            allocator.target_budget,
            self._images,
        )
        if text is not None and self.mode != "fixed":
            runner.logger.warning(text)

    def _record(self, runner, epoch: int, step: int, due: bool = True) -> None:
        """Write the sparsities now in force to the history, the log and the visualizer."""
        record = self.allocator.record(epoch, step, due)
        scalars = self.allocator.scalars(record)
        runner.message_hub.update_scalars(scalars)
        runner.visualizer.add_scalars(scalars, step=step)
        weights, asked = sum(self.allocator.sizes), self.due_at is not None
        runner.logger.info(allocation_text(record, scalars, weights, asked))
        if is_main_process():
            append_line(Path(runner.work_dir), record)
        self._warn_of_size(runner, record["norm"])

    def _warn_of_size(self, runner, norms: dict[str, float]) -> None:
        warning = self.guard.check(norms)
        if warning is not None:
            runner.logger.warning(warning)


def _method_of(model) -> tuple[str, Method]:
    """Name and method of the SnellaBackbone within a model; SNELLA for other models."""
    for module in model.modules():
        if isinstance(getattr(module, "method", None), Method):
            return module.method_name, module.method
    return "snella", METHODS["snella"]
