"""Which weights take part, from one allocation to the next."""

import numpy as np
import torch
from torch import Tensor

from .functional import DeltaBlock
from .functional.blocks import merge_deltas
from .layers import SnellaAdapter


@torch.no_grad()
def make_delta(adapter: SnellaAdapter) -> Tensor:
    """The sparse delta of a matrix, (out, in), made the quick way and without a graph."""
    shape = adapter.out_features, adapter.in_features
    recipe = (adapter.rule, adapter.current_sparsity(), adapter.params, adapter.bracket)
    return merge_deltas(None, shape, [DeltaBlock(0, shape[0], *recipe)])[0]


class ChurnTracker:
    """Counts the weights that win and lose their part between two looks.

    Keeps one bit per adapted weight, on the CPU.

    Args:
        adapters: matrix name -> adapter.
    """

    def __init__(self, adapters: dict[str, SnellaAdapter]) -> None:
        self.adapters = adapters
        self.masks: dict[str, np.ndarray] = {}

    def look(self) -> dict[str, dict[str, float | int] | None]:
        """Compare what takes part now with the last look.

        Returns:
            ``norm``, the Frobenius norm of each delta, and ``entered`` and ``left``, the numbers
            of weights that take part now but did not at the last look, and the other way round;
            the two are None at the first look. Each maps names of matrices to figures.
        """
        norms, entered, left = {}, {}, {}
        for name, adapter in self.adapters.items():
            delta = make_delta(adapter)
            norms[name] = float(delta.norm())
            mask = np.packbits((delta != 0).cpu().numpy().ravel())
            known = self.masks.get(name)
            if known is not None:
                entered[name], left[name] = _count(mask & ~known), _count(known & ~mask)
            self.masks[name] = mask
        seen = len(entered) == len(norms)
        return {
            "norm": norms,
            "entered": entered if seen else None,
            "left": left if seen else None,
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The masks, eight weights to a byte."""
        return {name: torch.from_numpy(mask) for name, mask in self.masks.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over the masks of :meth:`state_dict`; others than of these matrices are ignored."""
        self.masks = {name: state[name].cpu().numpy() for name in self.adapters if name in state}


def _count(packed: np.ndarray) -> int:
    """Number of bits that are set."""
    if hasattr(np, "bitwise_count"):
        return int(np.bitwise_count(packed).sum(dtype=np.int64))
    return int(np.unpackbits(packed).sum(dtype=np.int64))
