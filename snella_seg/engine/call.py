"""What a call of an adapted product is made of, besides tensors."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .blocks import DeltaBlock
from .branch import Branch
from .recipe import Recipe
from .sampling import TokenSample


@dataclass
class Call:
    """All that is no activation in a call of the product.

    Args:
        blocks: the deltas.
        split: whether W and the deltas have a product each.
        dtype: of the product with W.
        branch: on what the deltas act.
        recipe: how x is made again in backward; None where it is kept.
        sample: the tokens by which the gradient of the deltas is estimated.
    """

    blocks: list[DeltaBlock]
    split: bool
    dtype: torch.dtype
    branch: Branch
    recipe: Recipe | None
    sample: TokenSample = TokenSample()

    @property
    def delta_dtype(self) -> torch.dtype:
        """Precision of the product with the deltas; float16 has no room for values so small."""
        return torch.bfloat16 if self.dtype == torch.float16 else self.dtype


def no_view(y: Tensor) -> Tensor:
    """What an autograd function returns: ``y``, as no view, which what follows may write into.

    Activations in place may; autograd refuses them on views that were made inside a function.
    """
    return torch.ops.aten._unsafe_view(y, y.shape) if y._is_view() else y


def flat(groups: Iterable[Iterable[Any]]) -> list[Any]:
    """All items of all groups in one list."""
    return [item for group in groups for item in group]


def grouped(items: Sequence[Any], lengths: Iterable[int]) -> list[tuple[Any, ...]]:
    """Undo :func:`flat`, given how long each group is."""
    groups, start = [], 0
    for length in lengths:
        groups.append(tuple(items[start : start + length]))
        start += length
    return groups
