"""Inputs of products that are computed again in backward instead of being kept.

The output of a GELU or a LayerNorm is kept by the linear layer behind it, although backward can
make it from the input, which the GELU or LayerNorm keeps anyway. :func:`mark` leaves on such an
output how it was made; :func:`snella_seg.functional.adapted_linear` then keeps that instead.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_MARK = "_snella_recipe"


@dataclass(frozen=True)
class Recipe:
    """``function(*inputs)`` under the automatic mixed precision that was in force."""

    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    autocast: torch.dtype | None

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        """Make the output again, bit for bit."""
        device = inputs[0].device.type
        with torch.autocast(device, dtype=self.autocast, enabled=self.autocast is not None):
            return self.function(*inputs)


def mark(output: Tensor, recipe: Recipe) -> None:
    """Leave on a tensor how it was made."""
    setattr(output, _MARK, recipe)


def recipe_of(x: Tensor) -> Recipe | None:
    """How x was made, where that is known; views that show x unchanged count as x."""
    recipe = getattr(x, _MARK, None)
    if recipe is not None or x._base is None:
        return recipe
    whole = x._base
    same = (
        x.shape == whole.shape
        and x.stride() == whole.stride()
        and x.storage_offset() == whole.storage_offset()
    )
    return getattr(whole, _MARK, None) if same else None
