"""The budgets that a config asks for, epoch by epoch."""

import math
from dataclasses import dataclass

import numpy as np
from mmengine.config import Config

from ...configs import type_name
from ...functional import budget_schedule
from ...hooks import SparsityAllocationHook
from ...inject import Method, allocation_mode, get_method, method_name
from .read_history import History


@dataclass(frozen=True)
class Schedule:
    """What a run was to spend.

    Attributes:
        mode: ``'competition'``, ``'uniform'`` or ``'fixed'``.
        target_sparsity: share of zero weights in the end.
        min_density: share of its weights that each matrix keeps.
        epochs: of the allocations, (E,).
        budget: weights to be in force from each of them on, (E,).
    """

    mode: str
    target_sparsity: float
    min_density: float
    epochs: np.ndarray
    budget: np.ndarray

    def off(self, history: History) -> np.ndarray:
        """Measured minus scheduled budget of each allocation, (T,) weights.

        An allocation that the schedule knows nothing of counts with all its weights.
        """
        wanted = dict(zip(self.epochs.tolist(), self.budget.tolist(), strict=True))
        return np.array(
            [b - wanted.get(e, 0) for e, b in zip(history.epochs, history.budget, strict=True)]
        )


def find_method(cfg: Config) -> Method:
    """The method of a config's backbone; SNELLA where it names none."""
    return get_method(_method_name(cfg))


def _method_name(cfg: Config) -> str:
    return method_name((cfg.get("model") or {}).get("backbone") or {})


def find_hook(cfg: Config) -> SparsityAllocationHook | None:
    """The allocation hook that a config asks for, or None.

    Raises:
        ValueError: on options out of range.
        TypeError: on options that it does not know.
    """
    for hook in cfg.get("custom_hooks") or ():
        if type_name(hook) == SparsityAllocationHook.__name__:
            options = {k: v for k, v in hook.items() if k not in ("type", "priority")}
            return SparsityAllocationHook(**options)
    return None


def find_schedule(cfg: Config, history: History) -> Schedule:
    """The budgets of a config for the matrices of a history.

    Raises:
        ValueError: when the config allocates nothing, or does not tell how long the run is.
    """
    method, hook = find_method(cfg), find_hook(cfg)
    if hook is None:
        raise ValueError("the config has no SparsityAllocationHook among its custom_hooks")
    if method.allocation is None:
        raise ValueError(f"the config's method, {method.label}, allocates nothing")
    mode = allocation_mode(_method_name(cfg), method, hook.allocation)
    target = round((1.0 - hook.target_sparsity) * int(history.sizes.sum()))
    if mode == "fixed":
        epochs, budget = history.epochs, np.full(len(history.epochs), target)
    elif history.epochs[0] > 0:
        raise ValueError(
            f"the history begins in epoch {history.epochs[0]}, so the initial budget is missing"
        )
    else:
        total = _total_epochs(cfg, hook, history)
        epochs = np.arange(total)
        ends = (int(history.budget[0]), target, hook.warmup_epochs, hook.final_epochs)
        budget = np.array(
            [budget_schedule(epoch, total, *ends, hook.schedule) for epoch in epochs.tolist()]
        )
    return Schedule(mode, hook.target_sparsity, hook.min_density, epochs, budget)


def _total_epochs(cfg: Config, hook: SparsityAllocationHook, history: History) -> int:
    """Number of allocations of the whole run, the first included."""
    loop = cfg.get("train_cfg") or {}
    if loop.get("max_epochs") and hook.interval is None:
        return loop["max_epochs"]
    period = hook.interval or history.period
    if not loop.get("max_iters") or not period:
        raise ValueError("config and history do not tell how many allocations the run makes")
    return math.ceil(loop["max_iters"] / period)
