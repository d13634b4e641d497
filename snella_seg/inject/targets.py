"""Which matrices a backbone has, and which of them are adapted."""

import difflib
import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from .families import QKV, auto_kinds


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

    These are the weights of all ``nn.Linear`` and the packed projections of all
    ``nn.MultiheadAttention``; q, k and v of a packed weight are three matrices.
    """
    matrices = []
    for module_name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            weight_name = "in_proj_weight"
        elif isinstance(module, nn.Linear):
            weight_name = "weight"
        else:
            continue
        weight = module._parameters.get(weight_name)
        if weight is None:  # attention with keys and values of other widths
            continue
        full_name = f"{module_name}.{weight_name}" if module_name else weight_name
        kinds = auto_kinds(full_name)
        auto = kinds is not None
        if kinds is None:
            packed = weight_name == "in_proj_weight" or module_name.endswith("qkv")
            kinds = QKV if packed else (module_name.rpartition(".")[2] or "weight",)
        rows = weight.shape[0] // len(kinds)
        if rows * len(kinds) != weight.shape[0]:
            continue  # not q, k and v of one width
        for i, kind in enumerate(kinds):
            span = (i * rows, (i + 1) * rows)
            matrices.append(Matrix(full_name, module_name, kind, *span, weight.shape[1], auto))
    return matrices


def select_matrices(model: nn.Module, targets: str | Iterable[str] = "auto") -> list[Matrix]:
    """Choose matrices by ``'auto'`` or by patterns.

    Args:
        model: the backbone.
        targets: ``'auto'`` for q, k, v, attention projection and both MLP layers of every block;
            or a list of patterns, each the name of a kind (``'q'``, ``'fc1'``), of a module or of
            a matrix, with the wildcards of :mod:`fnmatch` (``'layers.1?.ffn.*'``,
            ``'*.downsample.reduction'``). An empty list adapts nothing.

    Raises:
        ValueError: when 'auto' or any pattern matches nothing; the message names near matches.
    """
    matrices = find_matrices(model)
    if isinstance(targets, str) and targets == "auto":
        chosen = [m for m in matrices if m.auto]
        if not chosen:
            raise ValueError(
                f"targets='auto' knows no encoder layer in {type(model).__name__}; give patterns, "
                f"for example from: {', '.join(m.name for m in matrices[:8]) or 'none found'}"
            )
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


def _matches(matrix: Matrix, pattern: str) -> bool:
    return matrix.kind == pattern or any(
        fnmatch.fnmatchcase(name, pattern) for name in (matrix.name, matrix.module)
    )


def near_matches(pattern: str, known: Iterable[str]) -> str:
    """The end of a message about a name that matched nothing."""
    known = sorted(known)
    near = difflib.get_close_matches(pattern, known, n=4, cutoff=0.4) or known[:4]
    return f"; near matches: {', '.join(near)}" if near else ""
