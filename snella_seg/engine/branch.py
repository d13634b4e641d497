"""Dropout and drop-path of the branch of deltas."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def _indices(chosen: Tensor, device: torch.device) -> Tensor:
    """Where a mask on the CPU is true, on a device, without waiting for that."""
    indices = chosen.nonzero()[:, 0]
    return indices.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else indices


def draw_kept(entries: int, drop_path: float) -> Tensor | None:
    """Which entries of a first dimension drop-path keeps, (entries,) on the CPU; None for all.

    Draws from torch's default generator where ``drop_path`` is not 0.
    """
    return torch.rand(entries) >= drop_path if drop_path else None


@dataclass
class Branch:
    """On what the deltas act: which entries of the first dimension, after which dropout.

    ``keep`` are the indices that drop-path keeps, None for all, and ``left`` the others, for
    which ``scale`` makes up. Dropout's mask is drawn anew from ``seed`` whenever it is needed.
    """

    keep: Tensor | None
    left: Tensor | None
    scale: float
    dropout: float
    seed: int

    @classmethod
    def draw(
        cls, x: Tensor, dropout: float, drop_path: float, kept: Tensor | None = None
    ) -> "Branch":
        """Draw what is dropped of an input; ``kept`` of :func:`draw_kept` where that was drawn."""
        if kept is None:
            kept = draw_kept(len(x), drop_path) if drop_path else None
        keep = left = None
        if kept is not None and not kept.all():
            keep, left = (_indices(chosen, x.device) for chosen in (kept, ~kept))
        seed = int(torch.randint(2**62, ())) if dropout else 0
        return cls(keep, left, 1.0 / (1.0 - drop_path), dropout, seed)

    @property
    def idle(self) -> bool:
        """Whether nothing is dropped and nothing scaled."""
        return self.keep is None and not self.dropout and self.scale == 1.0

    def select(self, x: Tensor) -> Tensor:
        """The entries that are kept, as rows (M, features)."""
        x = x if self.keep is None else x[self.keep]
        return x.reshape(-1, x.shape[-1])

    def drop(self, rows: Tensor) -> Tensor:
        """Dropout, the same at every call."""
        if not self.dropout:
            return rows
        generator = torch.Generator(rows.device).manual_seed(self.seed)
        share = 1.0 - self.dropout
        mask = torch.empty(rows.shape, dtype=torch.bool, device=rows.device)
        return rows * mask.bernoulli_(share, generator=generator) / share

    def add(self, total: Tensor, rows: Tensor) -> None:
        """Add rows to where :meth:`select` took them from, in place."""
        if self.keep is None:
            total += rows.view(total.shape)
        else:
            total.index_add_(0, self.keep, rows.view(len(self.keep), *total.shape[1:]))

    def place(self, rows: Tensor, others: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
        """Rows where :meth:`select` took them from, and ``others(entries)`` of what it left out."""
        shape = (*like.shape[:-1], rows.shape[-1])
        if self.keep is None:
            return rows.view(shape)
        total = rows.new_empty(shape)
        total[self.keep] = rows.view(len(self.keep), *shape[1:])
        total[self.left] = others(like[self.left])
        return total
