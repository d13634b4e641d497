"""What is adapted, what trains, what is frozen: one table."""

from collections import defaultdict
from collections.abc import Mapping

from torch import nn

from ..layers import Adapter
from .attach import adapter_keys, list_adapters
from .families import KINDS


def group_by_kind(adapters: Mapping[str, Adapter]) -> dict[str, list[Adapter]]:
    """Group adapters by the kind of their matrix (q, k, v, proj, fc1, fc2, then others)."""
    groups = defaultdict(list)
    for name, adapter in adapters.items():
        groups[name.rpartition(".")[2]].append(adapter)
    order = [k for k in KINDS if k in groups] + sorted(set(groups) - set(KINDS))
    return {kind: groups[kind] for kind in order}


def sparsity_by_kind(adapters: Mapping[str, Adapter]) -> dict[str, float]:
    """Share of zero delta weights of each kind of matrix."""
    return {
        kind: 1 - sum(a.num_nonzero for a in group) / sum(a.size for a in group)
        for kind, group in group_by_kind(adapters).items()
    }


def summarize(model: nn.Module) -> str:
    """One table of a segmentor (or a bare backbone) that carries adapters.

    Adapted matrices by kind with their learnable values and non-zero delta weights, then the
    parameters outside the adapters: trained and frozen ones of the backbone, and the heads.
    """
    adapters = list_adapters(model)
    rows = [("", "matrices", "weights", "learnable", "non-zero delta")]
    for kind, group in [*group_by_kind(adapters).items(), ("all adapted", list(adapters.values()))]:
        weights = sum(a.size for a in group)
        nonzero = sum(a.num_nonzero for a in group)
        learnable = sum(p.numel() for a in group for p in a.parameters())
        share = f" ({nonzero / weights:.1%})" if weights else ""
        rows.append(
            (kind, f"{len(group)}", f"{weights:,}", f"{learnable:,}", f"{nonzero:,}{share}")
        )
    trained = frozen = heads = 0
    backbone = getattr(model, "backbone", model)
    inside, ours = {id(p) for p in backbone.parameters()}, adapter_keys(model)
    for name, parameter in model.named_parameters():
        if name in ours:
            continue
        if id(parameter) not in inside:
            heads += parameter.numel() if parameter.requires_grad else 0
        elif parameter.requires_grad:
            trained += parameter.numel()
        else:
            frozen += parameter.numel()
    rows.append(("backbone, trained", "", f"{trained:,}", f"{trained:,}", ""))
    rows.append(("backbone, frozen", "", f"{frozen:,}", "0", ""))
    rows.append(("heads", "", f"{heads:,}", f"{heads:,}", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-4], rule, *lines[-4:]])
