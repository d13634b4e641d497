"""Lets matrices compete for the budget while training runs."""

import math
from pathlib import Path

import torch
from mmengine.dist import broadcast, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

from ..churn import ChurnTracker
from ..functional import allocate_budget, budget_schedule
from ..inject import list_adapters
from ..methods import ALLOCATIONS, METHODS, Method
from ..summary import sparsity_by_kind, summarize
from ..tracking import ImportanceTracker
from .history import append_line, start_history


class NoReallocationError(RuntimeError):
    """A run that ended with the sparsities that it began with."""


@HOOKS.register_module()
class SparsityAllocationHook(Hook):
    """Once per epoch, shares the scheduled number of non-zero delta weights among all matrices.

    Importances are taken just before each optimizer step, where gradients are unscaled, summed
    over accumulation and reduced over ranks. The budget falls from what the adapters start with
    to ``1 - target_sparsity`` of all weights, on a cubic curve
    (:func:`snella_seg.functional.budget_schedule`), and is split by
    :func:`snella_seg.functional.allocate_budget`.

    An epoch is a pass over the training set, in epoch-based and in iteration-based loops. State
    travels in checkpoints; each allocation is a line of ``sparsity_history.jsonl`` in the work
    dir, and scalars (``snella/budget``, ``snella/churn``, ``snella/sparsity_<kind>``) for the
    visualizer. Churn is the share of the weights in force that changed hands since the last
    allocation: of those that entered and those that left a matrix, the lesser number.

    Args:
        target_sparsity: share of all adapted weights that are zero in the end, in [0, 1).
        interval: iterations between reallocations; None for one epoch.
        warmup_epochs: intervals that keep the initial budget.
        final_epochs: intervals that keep the target budget; 1 reaches it in the last one, 0 is
            the published schedule, which ends just above.
        importance: ``'sensitivity'``, ``'magnitude'`` or ``'frobenius'``, see
            :class:`snella_seg.tracking.ImportanceTracker`.
        min_density: share of its weights that every matrix keeps, so that a starved one can win
            weights back; 0 is the published behaviour.
        beta1, beta2: decay rates of importance and uncertainty.
        allocation: ``'competition'``, ``'uniform'`` (the budget is scheduled, but every matrix is
            as dense as the others) or ``'fixed'`` (the target sparsity in every matrix, from the
            first iteration on). None for what the backbone's ``method`` asks for. A method that
            asks for something else than competition has its way.

    Raises:
        ValueError: on options out of range, a model without adapters, or a run shorter than
            warm-up and final epochs.
        NoReallocationError: at the very end of a run that never reallocated.
    """

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
    ) -> None:
        if allocation is not None and allocation not in ALLOCATIONS:
            raise ValueError(
                f"unknown allocation {allocation!r}; choose one of {', '.join(ALLOCATIONS)}"
            )
        for name, value in (("target_sparsity", target_sparsity), ("min_density", min_density)):
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), got {value}")
        if interval is not None and (interval != int(interval) or interval < 1):
            raise ValueError(f"interval must be a positive number of iterations, got {interval}")
        if warmup_epochs < 0 or final_epochs < 0:
            raise ValueError(
                f"warmup_epochs and final_epochs must not be negative, got {warmup_epochs} and "
                f"{final_epochs}"
            )
        self.target_sparsity, self.interval = target_sparsity, interval
        self.warmup_epochs, self.final_epochs = warmup_epochs, final_epochs
        self.min_density, self.allocation = min_density, allocation
        self.tracker_options = dict(importance=importance, beta1=beta1, beta2=beta2)
        self.tracker: ImportanceTracker | None = None
        self.mode: str | None = None
        self._loaded: dict | None = None
        self._handles: list = []

    # When

    def before_train(self, runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        method = _method_of(model)
        self.mode = method.allocation
        if self.mode == "competition" and self.allocation is not None:
            self.mode = self.allocation
        if self.mode is None:
            self.tracker = None
            runner.logger.info(f"{method.label}: there is no sparsity to allocate")
            return
        _refuse_without_sparsifier(model)
        options = dict(self.tracker_options)
        if method.importance is not None:
            options["importance"] = method.importance
        self.tracker = ImportanceTracker(model, **options)
        self.churn = ChurnTracker(self.tracker.adapters)
        self.adapters = list(self.tracker.adapters.values())
        self.sizes = [adapter.size for adapter in self.adapters]
        self.period = self.interval or iterations_per_epoch(runner)
        self.total_epochs = math.ceil(runner.max_iters / self.period)
        self.initial_budget = sum(adapter.num_nonzero for adapter in self.adapters)
        self.target_budget = round((1.0 - self.target_sparsity) * sum(self.sizes))
        self.reallocations = 0
        if runner.iter > 0:
            self._restore(runner)
        self._loaded = None
        if self.mode != "fixed":
            self._check_schedule(runner)
            self._watch_optimizer(runner.optim_wrapper)
        elif runner.iter == 0:
            self._set_budget(self.sizes, self.target_budget)
        if is_main_process():
            start_history(Path(runner.work_dir), runner.iter)
        runner.logger.info("SNELLA\n" + summarize(model))
        if runner.iter == 0:
            self._record(runner, epoch=0, scores=None)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.mode in (None, "fixed"):
            return
        done = runner.iter + 1
        if done % self.period == 0 and done < runner.max_iters:
            self.reallocate(runner, done // self.period)

    def after_train(self, runner) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def after_run(self, runner) -> None:
        if self.mode not in (None, "fixed") and self.reallocations == 0:
            message = (
                f"the run of {runner.max_iters} iterations ended without a single reallocation: "
                f"one takes place every {self.period} iterations. Its sparsities are the initial "
                "ones. Train longer or set interval of SparsityAllocationHook"
            )
            runner.logger.error(message)
            raise NoReallocationError(message)

    # What

    def reallocate(self, runner, epoch: int) -> None:
        """Let the matrices compete for the budget of ``epoch``."""
        budget = budget_schedule(
            epoch,
            self.total_epochs,
            self.initial_budget,
            self.target_budget,
            self.warmup_epochs,
            self.final_epochs,
        )
        scores = self.tracker.scores()
        self._set_budget(scores if self.mode == "competition" else self.sizes, budget)
        self.reallocations += 1
        self._record(runner, epoch, scores)

    def _set_budget(self, scores: list[float], budget: int) -> None:
        """Share a budget among the matrices in proportion to their scores."""
        shares = allocate_budget(scores, self.sizes, budget, self.min_density)
        shares = torch.as_tensor(shares, device=self.adapters[0].sparsity.device)
        broadcast(shares)  # ranks see the same gradients, but must not differ by a rounding
        for adapter, count in zip(self.adapters, shares.tolist(), strict=True):
            adapter.set_num_nonzero(count)

    def _check_schedule(self, runner) -> None:
        if self.total_epochs > 1 or self.warmup_epochs:
            budget_schedule(
                0, self.total_epochs, 0, 0, self.warmup_epochs, self.final_epochs
            )  # raises where nothing is left between warm-up and final epochs
        else:
            runner.logger.warning(
                f"this run of {runner.max_iters} iterations ends before the first reallocation, "
                f"which is due after {self.period}; set interval of SparsityAllocationHook"
            )

    def _watch_optimizer(self, optim_wrapper) -> None:
        """Take in importances before each step of the optimizer that holds the factors."""
        wrappers = getattr(optim_wrapper, "optim_wrappers", {"": optim_wrapper}).values()
        watched = {id(factor) for factor in self.tracker.factors}
        for optimizer in (wrapper.optimizer for wrapper in wrappers):
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            if watched <= held:
                self._handles.append(optimizer.register_step_pre_hook(self._before_step))
                return
        raise ValueError(
            "the optimizer does not hold all SNELLA factors; let one optimizer train them"
        )

    def _before_step(self, optimizer, args, kwargs) -> None:
        scale = getattr(optimizer, "grad_scale", None)  # fused optimizers unscale in their step
        self.tracker.update(1.0 if scale is None else scale)

    # State and records

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self.tracker is not None:
            checkpoint["snella"] = {
                "tracker": self.tracker.state_dict(),
                "initial_budget": self.initial_budget,
                "reallocations": self.reallocations,
                "masks": self.churn.state_dict(),
            }

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        self._loaded = checkpoint.get("snella")  # used only if this turns out to be a resume

    def _restore(self, runner) -> None:
        if self._loaded is None:
            runner.logger.warning(
                "the resumed checkpoint holds no SNELLA state: importances start from zero"
            )
            return
        self.tracker.load_state_dict(self._loaded["tracker"])
        self.churn.load_state_dict(self._loaded.get("masks", {}))
        self.initial_budget = self._loaded["initial_budget"]
        self.reallocations = self._loaded["reallocations"]

    def _record(self, runner, epoch: int, scores: list[float] | None) -> None:
        """Write the sparsities now in force to the history, the log and the visualizer."""
        counts = [adapter.num_nonzero for adapter in self.adapters]
        kinds = sparsity_by_kind(self.tracker.adapters)
        step = 0 if epoch == 0 else runner.iter + 1
        scalars = {"snella/budget": sum(counts)}
        scalars.update({f"snella/sparsity_{kind}": value for kind, value in kinds.items()})
        seen = self.churn.look()
        if seen["entered"] is not None:
            changed = sum(min(seen["entered"][n], seen["left"][n]) for n in seen["left"])
            scalars["snella/churn"] = changed / max(1, sum(counts))
        runner.message_hub.update_scalars(scalars)
        runner.visualizer.add_scalars(scalars, step=step)
        runner.logger.info(
            f"SNELLA budget of epoch {epoch}: {sum(counts)} of {sum(self.sizes)} delta weights; "
            + "sparsity "
            + ", ".join(f"{kind} {value:.3f}" for kind, value in kinds.items())
        )
        if is_main_process():
            names = list(self.tracker.adapters)
            line = {
                "epoch": epoch,
                "iter": step,
                "budget": sum(counts),
                "nonzero": dict(zip(names, counts, strict=True)),
                "sparsity": {n: a.current_sparsity() for n, a in self.tracker.adapters.items()},
                "score": None if scores is None else dict(zip(names, scores, strict=True)),
                **seen,
            }
            append_line(Path(runner.work_dir), line)


def _method_of(model) -> Method:
    """The method of the SnellaBackbone within a model; SNELLA for other models."""
    found = (getattr(module, "method", None) for module in model.modules())
    return next((m for m in found if isinstance(m, Method)), METHODS["snella"])


def _refuse_without_sparsifier(model) -> None:
    for name, adapter in list_adapters(model).items():
        if adapter.rule.sparsifier == "none":
            raise ValueError(
                f"sparsifier 'none' of {name} lets all weights take part, so there is no budget to "
                "share: choose another sparsifier, or method='snella_dense'"
            )


def iterations_per_epoch(runner) -> int:
    """Iterations of one pass over the training set, whatever the kind of loop.

    Raises:
        ValueError: when the dataset or batch size is not known; then give ``interval``.
    """
    loader = runner.train_dataloader
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        return len(loader)
    batch_size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    try:
        length = len(loader.dataset)
    except TypeError:
        length = 0
    if not batch_size or not length:
        raise ValueError(
            "cannot tell how many iterations make an epoch of this dataset; set interval of "
            "SparsityAllocationHook"
        )
    return math.ceil(length / (batch_size * get_world_size()))
