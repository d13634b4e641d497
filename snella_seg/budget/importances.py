"""Keeps the importance of every adapted matrix while training runs."""

from typing import Any

import torch
from torch import Tensor, nn

from ..functional import (
    counts_above_common_threshold,
    ema_importance_,
    importance_score,
    magnitude_histogram,
)
from ..inject import list_adapters

IMPORTANCES = ("sensitivity", "per_weight", "magnitude", "frobenius", "common_threshold")
#: Those that are averaged over steps; the others look at the deltas when matrices compete.
AVERAGED = ("sensitivity", "per_weight", "magnitude")

#: An importance of one step counts no more than this many times the largest average so far.
WILD = 100.0


class ImportanceTracker:
    """Smoothed importances of the factors of all adapted matrices of a model.

    ``update()`` is called once per optimisation step with the gradients in place, ``scores()``
    when matrices compete. Equations: :func:`snella_seg.functional.ema_importance`.

    Args:
        model: any model that carries adapters.
        importance: ``'sensitivity'`` (``I = |p * grad p|`` of the factors), ``'per_weight'`` (the
            same, divided by the number of weights in force), ``'magnitude'`` (``I = |p|``), or, by
            the delta at the moment of competition and without history, ``'frobenius'`` (its norm)
            or ``'common_threshold'`` (how many entries of the dense delta are among the largest
            of all matrices, so that weights compete across matrices at once).
        beta1: decay of the average.
        beta2: decay of the uncertainty.

    Raises:
        ValueError: on an unknown importance, or a model without adapters.
    """

    def __init__(
        self,
        model: nn.Module,
        importance: str = "sensitivity",
        beta1: float = 0.85,
        beta2: float = 0.85,
    ) -> None:
        if importance not in IMPORTANCES:
            raise ValueError(
                f"unknown importance {importance!r}; choose one of {', '.join(IMPORTANCES)}"
            )
        for name, beta in (("beta1", beta1), ("beta2", beta2)):
            if not 0.0 <= beta <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {beta}")
        self.adapters = list_adapters(model)
        if not self.adapters:
            raise ValueError(
                "the model carries no SNELLA adapters, so there is nothing to allocate: set the "
                "targets of SnellaBackbone, or leave out SparsityAllocationHook (custom_hooks)"
            )
        self.importance, self.beta1, self.beta2 = importance, beta1, beta2
        self.factors = [f for adapter in self.adapters.values() for f in adapter.factors]
        self._allocate(self.factors[0].device)

    def _allocate(self, device: torch.device) -> None:
        """One buffer each for all averages and uncertainties, and views per factor tensor."""
        sizes = [factor.numel() for factor in self.factors]
        dtype = torch.float64 if self.factors[0].dtype == torch.float64 else torch.float32
        self._averages = torch.zeros(sum(sizes), dtype=dtype, device=device)
        self._uncertainties = torch.zeros_like(self._averages)
        self.average, self.uncertainty = (
            self._views(flat) for flat in (self._averages, self._uncertainties)
        )

    def _views(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split([factor.numel() for factor in self.factors])
        return [part.view(f.shape) for part, f in zip(parts, self.factors, strict=True)]

    @property
    def by_gradient(self) -> bool:
        """Whether the gradients of each step count."""
        return self.importance in ("sensitivity", "per_weight")

    @torch.no_grad()
    def update(self, grad_scale: Tensor | float = 1.0) -> None:
        """Take in one step; without any gradient, sensitivities stay.

        Args:
            grad_scale: what the gradients are still multiplied by (a loss scale), else 1.
        """
        if self.importance not in AVERAGED:
            return
        if self.by_gradient and all(f.grad is None for f in self.factors):
            return
        self._follow_device()
        current = torch.empty_like(self._averages)
        views = self._views(current)
        torch._foreach_copy_(views, self.factors)
        if self.by_gradient:
            pairs = [(v, f.grad) for v, f in zip(views, self.factors, strict=True)]
            given = [pair for pair in pairs if pair[1] is not None]
            if len(given) < len(pairs):
                torch._foreach_zero_([view for view, grad in pairs if grad is None])
            if given:
                torch._foreach_mul_(*map(list, zip(*given, strict=True)))
            if not isinstance(grad_scale, float) or grad_scale != 1.0:
                current /= grad_scale
        current.abs_()
        # One wild gradient must not decide an allocation: what is far above all seen is cut.
        limit = WILD * self._averages.amax()
        torch.where(limit > 0, current.clamp(max=limit), current, out=current)
        ema_importance_(current, self._averages, self._uncertainties, self.beta1, self.beta2)

    @torch.no_grad()
    def scores(self, budget: int | None = None) -> list[float]:
        """Score of each matrix, in the order of ``adapters``.

        Args:
            budget: the number of weights that will be shared, which ``'common_threshold'`` needs;
                None for as many as are in force.
        """
        adapters = self.adapters.values()
        if self.importance == "frobenius":
            return torch.stack([adapter.delta_weight().norm() for adapter in adapters]).tolist()
        if self.importance == "common_threshold":
            rules = [(adapter.rule, adapter.params) for adapter in adapters]
            found = [magnitude_histogram(rule(params, 0.0)[0]) for rule, params in rules]
            count = sum(adapter.num_nonzero for adapter in adapters) if budget is None else budget
            return counts_above_common_threshold(torch.stack(found).cpu(), count).tolist()
        parts = [
            importance_score(a, u) for a, u in zip(self.average, self.uncertainty, strict=True)
        ]
        counts = [len(adapter.factors) for adapter in adapters]
        found = [float(group.sum()) for group in torch.stack(parts).double().split(counts)]
        if self.importance == "per_weight":
            weights = [max(1, adapter.num_nonzero) for adapter in adapters]
            return [score / count for score, count in zip(found, weights, strict=True)]
        return found

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on elsewhere: averages and uncertainties per factor tensor."""
        return {
            "importance": self.importance,
            "names": list(self.adapters),
            "average": [t.cpu().clone() for t in self.average],
            "uncertainty": [t.cpu().clone() for t in self.uncertainty],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the values of :meth:`state_dict`.

        Raises:
            ValueError: when they are of other matrices or of another importance, or not finite.
        """
        own = {"importance": self.importance, "names": list(self.adapters)}
        for key, value in own.items():
            if state.get(key) != value:
                raise ValueError(
                    f"the saved importances differ in {key}: {state.get(key)} instead of {value}"
                )
        for key in ("average", "uncertainty"):
            shapes = [tuple(saved.shape) for saved in state[key]]
            if shapes != [tuple(mine.shape) for mine in getattr(self, key)]:
                raise ValueError(
                    "the saved importances are of factors of other shapes: resume with the rank "
                    "and heads of the run that wrote them"
                )
            if not all(bool(saved.isfinite().all()) for saved in state[key]):
                raise ValueError(
                    "the saved importances are not finite, the run had diverged; resume from an "
                    "earlier checkpoint with a lower learning rate"
                )
            for mine, saved in zip(getattr(self, key), state[key], strict=True):
                mine.copy_(saved)

    def _follow_device(self) -> None:
        device = self.factors[0].device
        if self._averages.device != device:
            known = self._averages, self._uncertainties
            self._allocate(device)
            self._averages.copy_(known[0])
            self._uncertainties.copy_(known[1])
