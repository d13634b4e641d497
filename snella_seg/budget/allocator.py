"""The competition of a model's matrices: importances, budgets, shares, and their record."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..functional import allocate_budget, budget_schedule, moved_share
from ..inject import list_adapters, sparsity_by_kind
from .churn import ChurnTracker
from .importances import ImportanceTracker
from .wording import KIND

#: Steps before a reallocation in which all tokens take part; what was seen before them has 4 % of
#: the weight by the default decay of averages, 0.85.
EXACT_STEPS = 20


class SparsityAllocator:
    """Lets the adapted matrices of a model compete for a budget that falls from epoch to epoch.

    Knows nothing of a training loop: :meth:`observe` is called before each optimizer step with the
    gradients in place, :meth:`reallocate` at the end of an epoch. In mmengine
    :class:`snella_seg.hooks.SparsityAllocationHook` does both.

    Args:
        model: carries adapters.
        total_epochs: E, the number of epochs, or of whatever else lies between allocations.
        target_sparsity: share of all adapted weights that are zero in the end, in [0, 1).
        mode: ``'competition'``, ``'uniform'`` or ``'fixed'``, see
            :class:`snella_seg.inject.Method`.
        warmup_epochs, final_epochs: see :func:`snella_seg.functional.budget_schedule`.
        importance, beta1, beta2: see :class:`ImportanceTracker`.
        min_density: share of its weights that every matrix keeps.
        schedule: the curve of the budget, a name in :data:`snella_seg.functional.SCHEDULES`.
        due_at: share of the budget that must move between matrices for a reallocation to be due,
            in [0, 1]; None where each one is.

    Attributes:
        initial_budget, target_budget: V0 and V1, in weights.
        reallocations: how often the matrices have competed anew.
        scores: of the last time, by which the budget is shared; None before the first.
        moved: share of the budget that the last look would have moved, or did.

    Raises:
        ValueError: on a model without adapters, or whose weights do not compete; on options out of
            range; when the schedule leaves no epoch between warm-up and final ones.
    """

    def __init__(
        self,
        model: nn.Module,
        total_epochs: int,
        target_sparsity: float = 0.8,
        mode: str = "competition",
        warmup_epochs: int = 0,
        final_epochs: int = 1,
        importance: str = "sensitivity",
        min_density: float = 1e-3,
        beta1: float = 0.85,
        beta2: float = 0.85,
        schedule: str = "cubic",
        due_at: float | None = None,
    ) -> None:
        _refuse_without_competition(model)
        self.tracker = ImportanceTracker(model, importance, beta1, beta2)
        self.churn = ChurnTracker(self.tracker.adapters)
        self.adapters = list(self.tracker.adapters.values())
        self.sizes = [adapter.size for adapter in self.adapters]
        self.mode, self.min_density = mode, min_density
        self.total_epochs, self.schedule = total_epochs, schedule
        self.warmup_epochs, self.final_epochs = warmup_epochs, final_epochs
        self.initial_budget = self.in_force
        self.target_budget = round((1.0 - target_sparsity) * sum(self.sizes))
        self.due_at = due_at
        self.reallocations = 0
        self.scores: list[float] | None = None
        self.moved: float | None = None
        if mode != "fixed" and (total_epochs > 1 or warmup_epochs):
            self.budget(0)  # raises where nothing is left between warm-up and final epochs

    def budget(self, epoch: int) -> int:
        """The number of non-zero delta weights that the schedule has for an epoch."""
        if self.mode == "fixed":
            return self.target_budget
        return budget_schedule(
            epoch,
            self.total_epochs,
            self.initial_budget,
            self.target_budget,
            self.warmup_epochs,
            self.final_epochs,
            self.schedule,
        )

    @property
    def in_force(self) -> int:
        """The number of non-zero delta weights that the matrices have now."""
        return sum(adapter.num_nonzero for adapter in self.adapters)

    def observe(self, grad_scale: Tensor | float = 1.0) -> None:
        """Take in importances, just before an optimizer step; see :class:`ImportanceTracker`."""
        self.tracker.update(grad_scale)

    def look_ahead(self, left: int | None, interval: int) -> None:
        """Be told how many optimizer steps are left until matrices compete; None: they will not.

        Where gradients are estimated from a part of the tokens, sensitivities ``|p * grad p|`` are
        larger by the noise, more so in some matrices than in others. What was seen long ago hardly
        counts, so the last :data:`EXACT_STEPS` take all tokens, a third of an ``interval`` at most.
        """
        scored = self.mode == "competition" and self.tracker.by_gradient
        exact = scored and left is not None and left <= min(EXACT_STEPS, interval // 3)
        for adapter in self.adapters:
            if adapter.token_share < 1.0:
                adapter.takes_all_tokens = exact

    def spread_target(self, agree: Callable[[Tensor], Any] | None = None) -> None:
        """Give every matrix the target sparsity, at once."""
        self._give(self._shares(self.sizes, self.target_budget), agree)

    def reallocate(self, epoch: int, agree: Callable[[Tensor], Any] | None = None) -> bool:
        """Share the budget of an epoch among the matrices; it never grows beyond the target.

        Where a reallocation is not due, the budget falls as scheduled, shared by the scores of the
        last time. The first one always is.

        Args:
            epoch: from 1.
            agree: makes a tensor the same in all processes, in place (a broadcast).

        Returns:
            Whether the matrices competed anew.
        """
        # After resuming with another schedule its curve may lie above what is in force.
        budget = min(self.budget(epoch), max(self.in_force, self.target_budget))
        scores = self.tracker.scores(budget)
        shares, due = self._shares(scores, budget), True
        if self.scores is not None:
            held = self._shares(self.scores, budget)
            self.moved = moved_share(held, shares)
            due = self.due_at is None or self.moved > self.due_at
            shares = shares if due else held
        due = self._give(shares, agree, due)
        if due:
            self.scores = scores
            self.reallocations += 1
        return due

    def _shares(self, scores: list[float] | list[int], budget: int) -> NDArray[np.int64]:
        wanted = self.sizes if self.mode == "uniform" else scores
        return allocate_budget(wanted, self.sizes, budget, self.min_density)

    def _give(
        self, shares: NDArray[np.int64], agree: Callable[[Tensor], Any] | None, due: bool = True
    ) -> bool:
        """Let shares be in force, and return whether they are due, in all processes alike."""
        device = self.adapters[0].sparsity.device
        tensor = torch.as_tensor([*shares.tolist(), int(due)], device=device)
        if agree is not None:
            agree(tensor)  # ranks see the same gradients, but must not differ by a rounding
        *counts, due = tensor.tolist()
        for adapter, count in zip(self.adapters, counts, strict=True):
            adapter.set_num_nonzero(count)
        return bool(due)

    def record(self, epoch: int, iteration: int, due: bool = True) -> dict[str, Any]:
        """The allocation in force as a line of the history; looks at what changed hands.

        Args:
            epoch, iteration: of the allocation.
            due: whether the matrices competed anew.
        """
        names = list(self.tracker.adapters)
        counts = [adapter.num_nonzero for adapter in self.adapters]
        return {
            "epoch": epoch,
            "iter": iteration,
            "budget": sum(counts),
            "nonzero": dict(zip(names, counts, strict=True)),
            "sparsity": {n: a.current_sparsity() for n, a in self.tracker.adapters.items()},
            "score": None if self.scores is None else dict(zip(names, self.scores, strict=True)),
            "moved": self.moved,
            "due": due,
            **self.churn.look(),
        }

    def scalars(self, record: dict[str, Any]) -> dict[str, float]:
        """Figures of a record for a visualizer: budget, sparsity by kind, churn if it is known."""
        kinds = sparsity_by_kind(self.tracker.adapters)
        found = {"snella/budget": record["budget"]}
        found.update({KIND + kind: value for kind, value in kinds.items()})
        entered, left = record["entered"], record["left"]
        if entered is not None:
            changed = sum(min(entered[name], left[name]) for name in left)
            found["snella/churn"] = changed / max(1, record["budget"])
        if record["moved"] is not None:
            found["snella/moved"] = record["moved"]
        return found

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on as if it had not stopped."""
        return {
            "tracker": self.tracker.state_dict(),
            "initial_budget": self.initial_budget,
            "reallocations": self.reallocations,
            "scores": self.scores,
            "churn": self.churn.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave.

        Raises:
            ValueError: when it is of other matrices, or of another importance.
        """
        self.tracker.load_state_dict(state["tracker"])
        self.churn.load_state_dict(state.get("churn", {}))
        self.initial_budget = state["initial_budget"]
        self.reallocations = state["reallocations"]
        self.scores = state.get("scores")


def _refuse_without_competition(model: nn.Module) -> None:
    for name, adapter in list_adapters(model).items():
        if not adapter.rule.competes:
            raise ValueError(
                f"sparsifier {adapter.rule.sparsifier!r} of {name} lets all weights take part, so "
                "there is no budget to share: choose another sparsifier, or target_sparsity=0"
            )
