"""The deltas that a run ended with: their norms and effective ranks."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ...budget import current_delta
from ...inject import adapted_weights, list_adapters


@dataclass(frozen=True)
class Deltas:
    """Figures of L final deltas, each (L,).

    Attributes:
        names: of the matrices.
        nonzero: weights that take part, as allocated.
        rank: r of the factors, over all heads; what LoRA could have at most.
        full_rank: the lesser side of the matrix, which no rank exceeds.
        effective_rank: see :func:`effective_rank`.
        rank_90: number of singular values that hold 90 % of the squared norm.
        norm: Frobenius norm of the delta.
        base_norm: Frobenius norm of the base weight, of the same rows.
    """

    names: tuple[str, ...]
    nonzero: np.ndarray
    rank: np.ndarray
    full_rank: np.ndarray
    effective_rank: np.ndarray
    rank_90: np.ndarray
    norm: np.ndarray
    base_norm: np.ndarray

    @property
    def relative_norm(self) -> np.ndarray:
        """Norm of each delta over that of its base weight, (L,); NaN where the latter is 0."""
        base = np.where(self.base_norm > 0, self.base_norm, np.nan)
        return self.norm / base


def effective_rank(singular_values: Tensor) -> float:
    """Entropy-based effective rank (Roy and Vetterli, 2007) from singular values s, any shape (n,).

    ``exp(-sum p log p)`` with ``p = s / sum s``: n for n equal values, 1 for a single one, 0 for
    a matrix of zeros.
    """
    total = singular_values.sum()
    if not total > 0:
        return 0.0
    p = (singular_values / total).double()
    return float(torch.special.entr(p).sum().exp())


def rank_holding(singular_values: Tensor, share: float = 0.9) -> int:
    """How many of the largest singular values hold ``share`` of the squared Frobenius norm."""
    energy = singular_values.double().square().sort(descending=True).values.cumsum(0)
    if not len(energy) or not energy[-1] > 0:
        return 0
    return int((energy < share * energy[-1]).sum()) + 1


@torch.no_grad()
def measure_deltas(model: nn.Module) -> Deltas:
    """Take all deltas of a model and their singular values; about a second a matrix for ViT-B.

    Raises:
        ValueError: when the model carries no adapters, or a delta is not finite.
    """
    adapters, bases = list_adapters(model), _base_norms(model)
    if not adapters:
        raise ValueError("the model carries no SNELLA adapters; there are no deltas to look at")
    figures = []
    for name, adapter in adapters.items():
        delta = current_delta(adapter)
        if not delta.isfinite().all():
            raise ValueError(f"the delta of {name} is not finite: the training has diverged")
        values = torch.linalg.svdvals(delta)
        figures.append(
            (
                adapter.num_nonzero,
                adapter.options().get("rank", min(delta.shape)),
                min(delta.shape),
                effective_rank(values),
                rank_holding(values),
                float(delta.norm()),
                bases[name],
            )
        )
    return Deltas(tuple(adapters), *map(np.array, zip(*figures, strict=True)))


def _base_norms(model: nn.Module) -> dict[str, float]:
    """Matrix name -> Frobenius norm of the rows of the base weight that its delta changes."""
    return {
        name: float(module.base_weight[rows].norm())
        for _, module, matrices in adapted_weights(model)
        for name, rows in matrices.items()
    }
