"""What a report says in words and tables."""

from dataclasses import dataclass

import numpy as np

from .deltas import Deltas
from .layout import Layout
from .read_history import History
from .schedule import Schedule


@dataclass(frozen=True)
class Findings:
    """All that a report is made of.

    Attributes:
        run: name of the run.
        history: its allocations.
        layout: where its matrices sit.
        schedule: the budgets that it was to have, or None where no config tells.
        deltas: the deltas of its checkpoint, in the order of the history, or None without one.
        about: further facts, as name and value.
        notes: what is missing, and why.
    """

    run: str
    history: History
    layout: Layout
    schedule: Schedule | None
    deltas: Deltas | None
    about: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def epoch_label(self) -> str:
        """What an axis of epochs says."""
        period = self.history.period
        return f"epoch (of {period:,} iterations)" if period else "epoch"


def percent(share: float) -> str:
    """A share as text, with about two significant digits where it is small."""
    if not np.isfinite(share):
        return "–"
    value = 100.0 * share
    digits = 1 if value >= 1 or value == 0 else min(4, int(1 - np.floor(np.log10(value))))
    return f"{value:.{digits}f} %"


def facts(findings: Findings) -> list[tuple[str, str]]:
    """Names and values of what a run did, in the order to read them."""
    history, layout = findings.history, findings.layout
    total, density = int(history.sizes.sum()), history.density[-1]
    order = np.argsort(-density, kind="stable")

    def some(indices):
        return ", ".join(f"{layout.label(i)} ({percent(density[i])})" for i in indices)

    lines = [
        ("run", findings.run),
        *findings.about,
        ("matrices", f"{len(history.names)} in {len(layout.blocks)} blocks, {total:,} weights"),
        ("allocations", _allocations(history)),
        ("budget at the start", _budget(history.budget[0], total)),
        ("budget at the end", _budget(history.budget[-1], total)),
        ("schedule", _against_schedule(findings)),
        ("densest matrices", some(order[:3])),
        ("sparsest matrices", some(order[::-1][:3])),
        ("full", f"{int((density >= 1).sum())} matrices: all their weights take part"),
    ]
    if findings.schedule is not None:
        lines.append(("at the floor", _at_the_floor(findings)))
    if history.entered is not None:
        changed = np.minimum(history.entered[-1], history.left[-1]).sum() / history.budget[-1]
        lines.append(("churn at the last allocation", f"{percent(changed)} of the weights"))
    if findings.deltas is not None:
        lines.append(("effective rank", _ranks(findings.deltas)))
    return lines


def _allocations(history: History) -> str:
    count = len(history.epochs) - 1
    if not count:
        return "none after the start"
    times = f"{count} after the start" if count > 1 else "one after the start"
    anew = (
        ""
        if history.due.all()
        else f"; {history.due[1:].sum()} of them were due, at "
        + (", ".join(f"{step:,}" for step in history.iters[1:][history.due[1:]]))
    )
    return f"{times}, every {history.period:,} iterations, the last at {history.iters[-1]:,}{anew}"


def _budget(budget: int, total: int) -> str:
    return f"{budget:,} weights, {percent(budget / total)}"


def _against_schedule(findings: Findings) -> str:
    schedule, history = findings.schedule, findings.history
    if schedule is None:
        return "not known"
    off = schedule.off(history)
    wrong = np.flatnonzero(off)
    if len(wrong):
        worst = wrong[np.abs(off[wrong]).argmax()]
        return (
            f"differs in {len(wrong)} of {len(off)} allocations, most in epoch "
            f"{history.epochs[worst]}, by {off[worst]:+,} weights"
        )
    met = f"met by all {len(off)} allocations" if len(off) > 1 else "met"
    left = int((schedule.epochs > history.epochs[-1]).sum())
    return met + (f"; {left} more are due, the run has not ended" if left else "")


def _at_the_floor(findings: Findings) -> str:
    """Which matrices hold no more weights than ``min_density`` leaves to each."""
    history, floor = findings.history, findings.schedule.min_density
    low = np.flatnonzero(history.nonzero[-1] <= np.ceil(floor * history.sizes))
    names = ", ".join(findings.layout.label(i) for i in low[:6])
    more = f" and {len(low) - 6} more" if len(low) > 6 else ""
    listed = f": {names}{more}" if len(low) else ""
    return f"{len(low)} of {len(history.names)} matrices (min_density {floor:g}){listed}"


def _ranks(deltas: Deltas) -> str:
    below = int((deltas.effective_rank < deltas.rank).sum())
    ranks = "/".join(map(str, np.unique(deltas.rank)))
    return (
        f"median {np.median(deltas.effective_rank):.1f}; {below} of {len(deltas.rank)} deltas lie "
        f"below the r = {ranks} of their factors"
    )


def by_kind(findings: Findings) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table with a row for each kind of matrix, and one for all."""
    return _table("kind", findings, findings.layout.by_kind())


def by_depth(findings: Findings) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table with a row for each third of the blocks, and one for all."""
    return _table("depth", findings, findings.layout.by_depth())


def _table(first: str, findings: Findings, groups: dict) -> tuple[list[str], list[list[str]]]:
    """Final allocation by groups of matrices; the last two columns need a checkpoint."""
    history, deltas = findings.history, findings.deltas
    header = [first, "matrices", "weights", "in force", "density", "share of budget",
              "against an even split"]  # fmt: skip
    if deltas is not None:
        header += ["delta / base norm", "effective rank, median"]
    everything = np.ones(len(history.names), dtype=bool)
    rows = []
    for name, chosen in {**groups, "all": everything}.items():
        size, count = history.sizes[chosen].sum(), history.nonzero[-1, chosen].sum()
        share, even = count / history.budget[-1], size / history.sizes.sum()
        cells = [name, f"{chosen.sum()}", f"{size:,}", f"{count:,}", percent(count / size),
                 percent(share), f"{share / even:.2g} x"]  # fmt: skip
        if deltas is not None:
            norm, base = (np.linalg.norm(v[chosen]) for v in (deltas.norm, deltas.base_norm))
            cells += [percent(norm / base) if base else "–",
                      f"{np.median(deltas.effective_rank[chosen]):.1f}"]  # fmt: skip
        rows.append(cells)
    return header, rows
