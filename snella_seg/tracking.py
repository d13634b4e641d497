"""Keeps the importance of every adapted matrix while training runs."""

import torch
from torch import Tensor, nn

from .functional import importance_score
from .inject import list_adapters

IMPORTANCES = ("sensitivity", "magnitude", "frobenius")


class ImportanceTracker:
    """Smoothed importances of the factors of all adapted matrices of a model.

    ``update()`` is called once per optimisation step with the gradients in place, ``scores()``
    when matrices compete. Equations: :func:`snella_seg.functional.ema_importance`.

    Args:
        model: any model that carries adapters.
        importance: ``'sensitivity'`` (I = |p * grad p| of the factors), ``'magnitude'`` (I = |p|)
            or ``'frobenius'`` (the norm of the delta at the moment of competition; no history).
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
        self.average = [torch.zeros_like(f, requires_grad=False) for f in self.factors]
        self.uncertainty = [torch.zeros_like(f, requires_grad=False) for f in self.factors]

    @torch.no_grad()
    def update(self, grad_scale: Tensor | float = 1.0) -> None:
        """Take in one step.

        Args:
            grad_scale: what the gradients are still multiplied by (a loss scale), else 1.
        """
        if self.importance == "frobenius":
            return
        self._follow_device()
        if self.importance == "magnitude":
            current = torch._foreach_abs(self.factors)
        else:
            grads = [torch.zeros_like(f) if f.grad is None else f.grad for f in self.factors]
            current = torch._foreach_mul(self.factors, grads)
            if not isinstance(grad_scale, float) or grad_scale != 1.0:
                torch._foreach_div_(current, grad_scale)
            torch._foreach_abs_(current)
            for values in current:
                values.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        torch._foreach_lerp_(self.average, current, 1 - self.beta1)
        torch._foreach_sub_(current, self.average)
        torch._foreach_abs_(current)
        torch._foreach_lerp_(self.uncertainty, current, 1 - self.beta2)

    @torch.no_grad()
    def scores(self) -> list[float]:
        """Score of each matrix, in the order of ``adapters``."""
        if self.importance == "frobenius":
            norms = [adapter.delta_weight().norm() for adapter in self.adapters.values()]
            return torch.stack(norms).tolist()
        parts = [
            importance_score(a, u) for a, u in zip(self.average, self.uncertainty, strict=True)
        ]
        return torch.stack(parts).double().view(-1, 2).sum(1).tolist()

    def state_dict(self) -> dict:
        """Everything needed to go on elsewhere: averages and uncertainties per factor tensor."""
        return {
            "importance": self.importance,
            "names": list(self.adapters),
            "average": [t.cpu().clone() for t in self.average],
            "uncertainty": [t.cpu().clone() for t in self.uncertainty],
        }

    def load_state_dict(self, state: dict) -> None:
        """Take over the values of :meth:`state_dict`.

        Raises:
            ValueError: when they are of other matrices or of another importance.
        """
        own = {"importance": self.importance, "names": list(self.adapters)}
        for key, value in own.items():
            if state.get(key) != value:
                raise ValueError(
                    f"the saved importances differ in {key}: {state.get(key)} instead of {value}"
                )
        for key in ("average", "uncertainty"):
            for mine, saved in zip(getattr(self, key), state[key], strict=True):
                mine.copy_(saved)

    def _follow_device(self) -> None:
        if self.average[0].device != self.factors[0].device:
            device = self.factors[0].device
            self.average = [t.to(device) for t in self.average]
            self.uncertainty = [t.to(device) for t in self.uncertainty]
