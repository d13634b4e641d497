"""Which matrices a backbone has, and which of them are adapted."""

import difflib
import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from ..layers import Adapter
from .coverage import Coverage, count_kinds, find_left_out
from .encoder_blocks import find_blocks, linear_weight
from .families import KINDS, QKV, auto_kinds, stacks_by_heads, why_left_out


@dataclass(frozen=True)
class Matrix:
    """One matrix that can be adapted: rows of a weight of a module.

    ``name`` is the module's name and the matrix's kind, joined by a dot; ``weight`` is the name of
    the weight.
    """

    weight: str
    module: str
    kind: str
    start: int
    stop: int
    in_features: int
    auto: bool

    @property
    def name(self) -> str:
        return f"{self.module}.{self.kind}" if self.module else self.kind


def find_matrices(model: nn.Module) -> list[Matrix]:
    """List every matrix of ``model`` that can be adapted, in the order of its modules.

    These are the weights of all ``nn.Linear`` and 1x1 ``nn.Conv2d``, and the packed projections of
    all ``nn.MultiheadAttention``; q, k and v of a packed weight are three matrices.
    """
    matrices = []
    in_blocks = _names_in_blocks(model)
    for module_name, module in model.named_modules():
        weight_name = linear_weight(module)
        if weight_name is None:
            continue
        weight = module._parameters[weight_name]
        assert weight is not None
        full_name = f"{module_name}.{weight_name}" if module_name else weight_name
        named = auto_kinds(full_name)
        auto = (named is not None or full_name in in_blocks) and why_left_out(full_name) is None
        kinds = _kinds(model, module_name, weight_name, len(weight), named)
        rows = weight.shape[0] // len(kinds)
        for i, kind in enumerate(kinds):
            span = (i * rows, (i + 1) * rows)
            matrices.append(Matrix(full_name, module_name, kind, *span, weight.shape[1], auto))
    return matrices


def _kinds(
    model: nn.Module, module: str, weight: str, rows: int, named: tuple[str, ...] | None
) -> tuple[str, ...]:
    """The kinds of the matrices that a weight stacks; a whole that cannot be split is one."""
    owner, _, leaf = module.rpartition(".")
    packed = weight == "in_proj_weight" or leaf.endswith("qkv")
    kinds = named or (QKV if packed else (leaf or "weight",))
    if len(kinds) > 1 and (rows % len(kinds) or stacks_by_heads(model.get_submodule(owner))):
        return (leaf or "weight",)
    return kinds


def _names_in_blocks(model: nn.Module) -> set[str]:
    """Names of all parameters in the blocks of an encoder, if families know any of its weights."""
    names = [
        f"{block}.{name}"
        for block, module in find_blocks(model)
        for name, _ in module.named_parameters()
    ]
    return set(names) if any(auto_kinds(name) for name in names) else set()


def select_matrices(model: nn.Module, targets: str | Iterable[str] = "auto") -> list[Matrix]:
    """Choose matrices by ``'auto'``, ``'all-linear'`` or patterns.

    Args:
        model: the backbone.
        targets: ``'auto'`` for every linear map of every encoder block: q, k, v, attention
            projection, the layers of the MLP, and what else a block has, but for what the family's
            entry gives a reason for (:func:`snella_seg.inject.cover`); ``'all-linear'`` for
            those between blocks as well, as downsampling; or a list of patterns, each the name of a
            kind (``'q'``, ``'fc1'``), of a layer (``'w12'``), of a module or of a matrix, with the
            wildcards of :mod:`fnmatch` (``'layers.1?.ffn.*'``, ``'*.downsample.reduction'``). An
            empty list adapts nothing.

    Raises:
        ValueError: when 'auto' or any pattern matches nothing; the message names near matches.
            When 'auto' would leave out a weight of a block without a reason.
    """
    matrices = find_matrices(model)
    if isinstance(targets, str) and targets in ("auto", "all-linear"):
        chosen = [m for m in matrices if m.auto or targets == "all-linear"]
        if not chosen:
            raise ValueError(
                f"targets={targets!r} knows no encoder layer in {type(model).__name__}; give "
                f"patterns, for example from: "
                f"{', '.join(m.name for m in matrices[:8]) or 'none found'}"
            )
        if targets == "auto":
            _refuse_gaps(model, chosen)
        return chosen
    patterns = [targets] if isinstance(targets, str) else list(targets)
    chosen = set()
    for pattern in patterns:
        matched = [m for m in matrices if _matches(m, pattern)]
        if not matched:
            known = {n for m in matrices for n in (m.name, m.module, m.kind)}
            raise ValueError(f"target {pattern!r} matches no matrix{near_matches(pattern, known)}")
        chosen.update(matched)
    return [m for m in matrices if m in chosen]


def _refuse_gaps(model: nn.Module, chosen: list[Matrix]) -> None:
    """Refuse to leave out a weight of a block that nothing explains."""
    left = find_left_out(model, (m.weight for m in chosen))
    gaps = [weight for one in left if one.reason is None for weight in one.weights]
    if gaps:
        shown = ", ".join(gaps[:3]) + (" ..." if len(gaps) > 3 else "")
        raise ValueError(
            f"targets='auto' cannot adapt {len(gaps)} weights in blocks of {type(model).__name__}: "
            f"{shown}. Give targets as patterns, or say why in an entry of "
            "snella_seg.inject.FAMILIES: Family(left_out={'end.of.the.name': 'why'})"
        )


def cover(model: nn.Module, adapted: Iterable[str]) -> Coverage:
    """What adapters on the named matrices reach of a model; see :class:`Coverage`.

    Args:
        model: the backbone, with these adapters or without any.
        adapted: names of matrices, as of :func:`snella_seg.inject.list_adapters`.
    """
    names = set(adapted)
    chosen = [m for m in find_matrices(model) if m.name in names]
    ours = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, Adapter)
        for parameter in module.parameters()
    }
    return Coverage(
        matrices=count_kinds((m.kind for m in chosen), KINDS),
        blocks=sum(1 for _ in find_blocks(model)),
        adapted=sum((m.stop - m.start) * m.in_features for m in chosen),
        parameters=sum(p.numel() for p in model.parameters() if id(p) not in ours),
        left_out=tuple(find_left_out(model, (m.weight for m in chosen))),
    )


def _matches(matrix: Matrix, pattern: str) -> bool:
    layer = matrix.module.rpartition(".")[2]
    return pattern in (matrix.kind, layer) or any(
        fnmatch.fnmatchcase(name, pattern) for name in (matrix.name, matrix.module)
    )


def near_matches(pattern: str, known: Iterable[str]) -> str:
    """The end of a message about a name that matched nothing."""
    known = sorted(known)
    near = difflib.get_close_matches(pattern, known, n=4, cutoff=0.4) or known[:4]
    return f"; near matches: {', '.join(near)}" if near else ""
