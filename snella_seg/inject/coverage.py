"""How much of an encoder is adapted, and what of its blocks is left out, and why."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from ..layers import is_linear_map
from .encoder_blocks import find_blocks
from .families import why_left_out


@dataclass(frozen=True)
class LeftOut:
    """Weights of one kind that blocks hold and no adapter acts on.

    ``kind`` is the end of their module's name, without numbers. ``reason`` is None where nothing
    explains it.
    """

    kind: str
    reason: str | None
    weights: tuple[str, ...]
    parameters: int


@dataclass(frozen=True)
class Coverage:
    """What adapters reach of a backbone.

    ``matrices`` counts the adapted ones by kind, ``adapted`` their weights; ``parameters`` are all
    of the backbone, adapters apart, and ``blocks`` its encoder blocks.
    """

    matrices: dict[str, int]
    blocks: int
    adapted: int
    parameters: int
    left_out: tuple[LeftOut, ...]

    @property
    def share(self) -> float:
        """Adapted weights over all parameters of the backbone."""
        return self.adapted / max(1, self.parameters)

    def line(self) -> str:
        """All of it in one line."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.matrices.items()) or "none"
        text = (
            f"adapted: {sum(self.matrices.values())} matrices ({kinds}) of {self.blocks} blocks, "
            f"{self.share:.1%} of the backbone's parameters; left out of blocks: "
        )
        parts = [
            f"{len(left.weights)} {left.kind} ({left.parameters / max(1, self.parameters):.1%}: "
            f"{left.reason or 'not chosen by targets'})"
            for left in self.left_out
        ]
        return text + (", ".join(parts) or "nothing")


def find_left_out(model: nn.Module, adapted: Iterable[str]) -> list[LeftOut]:
    """Weights that map features in a model's blocks and are not among the adapted ones.

    Args:
        model: the backbone.
        adapted: names of the weights that have adapters, or are to have some.

    Returns:
        One entry a kind and reason, in the order of the modules.
    """
    known, groups = set(adapted), defaultdict(list)
    for name, owner, weight in _maps_of_blocks(model):
        if name not in known:
            kind = ".".join([part for part in name.split(".")[:-1] if not part.isdecimal()][-2:])
            groups[kind, why_left_out(name) or _not_a_matrix(owner)].append((name, weight.numel()))
    return [
        LeftOut(kind, reason, tuple(name for name, _ in found), sum(size for _, size in found))
        for (kind, reason), found in groups.items()
    ]


def _maps_of_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Names, modules and weights by which blocks map features, linear or convolutional."""
    for block, module in find_blocks(model):
        for path, owner in module.named_modules(prefix=block):
            for leaf, weight in owner._parameters.items():
                if weight is not None and weight.ndim > 1 and leaf.endswith("weight"):
                    if not (isinstance(owner, nn.Embedding) or ".adapters." in f".{path}."):
                        yield f"{path}.{leaf}", owner, weight


def _not_a_matrix(module: nn.Module) -> str | None:
    """Why a module's weight is no matrix between features; None where it is, or is not known."""
    if not isinstance(module, nn.modules.conv._ConvNd):
        return None
    if isinstance(module, nn.Conv2d) and is_linear_map(module):
        return None
    return "convolution of groups" if module.groups > 1 else "convolution of several pixels"


def count_kinds(kinds: Iterable[str], order: Iterable[str]) -> dict[str, int]:
    """How often each kind occurs, in a given order, others after it."""
    counts = Counter(kinds)
    first = [kind for kind in order if kind in counts]
    return {kind: counts[kind] for kind in [*first, *sorted(set(counts) - set(first))]}
