"""Inputs of products that are computed again in backward instead of being kept.

The output of a GELU or a LayerNorm is kept by the linear layer behind it, although backward can
make it from the input, which the GELU or LayerNorm keeps anyway. :func:`mark` leaves on such an
output how it was made; :func:`snella_seg.functional.adapted_linear` then keeps the input instead.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_MARK = "_snella_made_by"


@dataclass(frozen=True)
class Recipe:
    """A function under the automatic mixed precision that was in force; it holds no tensor."""

    function: Callable[..., Tensor]
    autocast: torch.dtype | None

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        """Make the output again, bit for bit."""
        device = inputs[0].device.type
        with torch.autocast(device, dtype=self.autocast, enabled=self.autocast is not None):
            return self.function(*inputs)


@dataclass(frozen=True)
class _Mark:
    recipe: Recipe
    inputs: tuple[Tensor, ...]
    versions: list[int]


def _versions(output: Tensor, inputs: tuple[Tensor, ...]) -> list[int]:
    return [t._version for t in (output, *inputs)]


def mark(output: Tensor, recipe: Recipe, inputs: tuple[Tensor, ...]) -> None:
    """Leave on a tensor how it was made. The mark is void once anything is changed in place."""
    setattr(output, _MARK, _Mark(recipe, inputs, _versions(output, inputs)))


def recipe_of(x: Tensor) -> tuple[Recipe | None, tuple[Tensor, ...]]:
    """How and from what x was made, ``(None, ())`` where that is not known.

    Views that show a marked tensor unchanged count as that tensor.
    """
    found = getattr(x, _MARK, None)
    whole = x._base
    if found is None and whole is not None:
        same = (
            x.shape == whole.shape
            and x.stride() == whole.stride()
            and x.storage_offset() == whole.storage_offset()
        )
        found = getattr(whole, _MARK, None) if same else None
    if found is None or _versions(x, found.inputs) != found.versions:
        return None, ()
    return found.recipe, found.inputs
