"""Which weights take part, from one allocation to the next."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engine import merge_deltas
from ..layers import Adapter

#: Weights of a matrix that are watched, at most; smaller matrices are watched whole.
SAMPLE = 1 << 14


@torch.no_grad()
def current_delta(adapter: Adapter) -> Tensor:
    """The sparse delta of a matrix, (out, in), made the quick way and without a graph."""
    shape = adapter.out_features, adapter.in_features
    return merge_deltas(None, shape, [adapter.delta_block()])[0]


class ChurnTracker:
    """Counts the weights that win and lose their part between two looks.

    Of large matrices a sample is watched, the same at every look, and the counts are scaled to the
    whole: 2 KiB per matrix in a checkpoint, and shares that are right to about half a percent.

    Args:
        adapters: matrix name -> adapter.
    """

    def __init__(self, adapters: Mapping[str, Adapter]) -> None:
        self.adapters = adapters
        self.seen: dict[str, Tensor] = {}

    def look(self) -> dict[str, dict[str, Any] | None]:
        """Compare what takes part now with the last look.

        Returns:
            ``norm``, the Frobenius norm of each delta, and ``entered`` and ``left``, the numbers
            of weights that take part now but did not at the last look, and the other way round;
            the two are None at the first look. Each maps names of matrices to figures.
        """
        norms, entered, left = {}, {}, {}
        for name, adapter in self.adapters.items():
            delta = current_delta(adapter)
            norms[name] = float(delta.norm())
            now = (delta.flatten()[_sample(delta.numel(), delta.device)] != 0).cpu()
            known = self.seen.get(name)
            if known is not None and len(known) == len(now):
                weight = delta.numel() / len(now)
                entered[name] = round(weight * int((now & ~known).sum()))
                left[name] = round(weight * int((known & ~now).sum()))
            self.seen[name] = now
        complete = len(entered) == len(norms)
        return {
            "norm": norms,
            "entered": entered if complete else None,
            "left": left if complete else None,
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Which watched weights took part at the last look, by matrix, eight to a byte."""
        return {n: torch.from_numpy(np.packbits(seen.numpy())) for n, seen in self.seen.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state_dict` gave; others than of these matrices are ignored."""
        self.seen = {}
        for name, adapter in self.adapters.items():
            if name in state:
                bits = np.unpackbits(state[name].cpu().numpy())
                self.seen[name] = torch.from_numpy(bits[: min(adapter.size, SAMPLE)].astype(bool))


def _sample(size: int, device: torch.device) -> Tensor:
    """Positions of the watched weights: all, or spread evenly by the golden ratio."""
    if size <= SAMPLE:
        return torch.arange(size, device=device)
    places = torch.arange(SAMPLE, dtype=torch.float64) * ((5**0.5 - 1) / 2) % 1.0
    return (places * size).long().to(device)
