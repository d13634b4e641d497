"""Writes the report of a run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from ..document import Section
from ..style import save_figure
from . import plots
from .collect import collect, find_config, refuse_without_history
from .facts import Findings
from .page import report_document


class Plot(NamedTuple):
    """A picture that a report may have: its file's name, what it shows, what it needs."""

    name: str
    title: str
    about: str
    draw: Callable[[Findings], Figure | None]
    needs: str


PLOTS = (
    Plot(
        "density",
        "Density in the end",
        "The share of each matrix's weights that take part after the last allocation.",
        plots.density,
        "",
    ),
    Plot(
        "budget",
        "Budget against the schedule",
        "Weights in force after each allocation, and the cubic curve of the config; a ring marks "
        "an allocation off the curve.",
        plots.budget,
        "",
    ),
    Plot(
        "churn",
        "Churn",
        "Weights that came and went between two allocations, because the budget fell, because it "
        "moved to other matrices, or because others of the same matrix outgrew them.",
        plots.churn,
        "numbers of weights that entered and left in the history",
    ),
    Plot(
        "effective_rank",
        "Effective rank of the final deltas",
        "A dot for each matrix, the first block on the left and dark. Above the dashed line are "
        "deltas that no LoRA of the same rank could have.",
        plots.ranks,
        "a checkpoint",
    ),
    Plot(
        "relative_norm",
        "Size of the final deltas",
        "Frobenius norm of each final delta, relative to that of the base weight that it changes.",
        plots.relative_norm,
        "a checkpoint with deltas that are not all zero",
    ),
    Plot(
        "norm",
        "Size of the deltas over time",
        "Frobenius norm of the deltas just after each allocation.",
        plots.norms,
        "norms in the history",
    ),
    Plot(
        "importance",
        "Importance",
        "The scores by which matrices competed: the budget is shared in proportion to them, as far "
        "as matrices have room.",
        plots.importance,
        "importances in the history",
    ),
)


def write_report(
    work_dir: str | Path,
    config: str | Path | None = None,
    checkpoint: str | Path | None = None,
    out: str | Path | None = None,
) -> Path:
    """Write where a run's budget went, and why: ``index.html``, ``report.md`` and pictures.

    Config and checkpoint are searched for in the work dir; where none is found, or the checkpoint
    that is found cannot be loaded, the report goes without and says so.

    Args:
        work_dir: of a run with :class:`snella_seg.hooks.SparsityAllocationHook`.
        config: the run's config; None for the newest one in the work dir.
        checkpoint: for the final deltas; None for the newest whole one in the work dir.
        out: folder to write to, made where missing; None for ``report`` in the work dir.

    Returns:
        The page.

    Raises:
        FileNotFoundError: when there is no history, or no such config or checkpoint.
        ValueError: when the history is unreadable, or the checkpoint is of other matrices.
        CheckpointError: when the checkpoint that was given does not fit the config.
    """
    work_dir = Path(work_dir)
    if not work_dir.is_dir():
        raise FileNotFoundError(f"work dir not found: {work_dir}")
    cfg = find_config(work_dir, config)
    refuse_without_history(work_dir, cfg)
    findings = collect(work_dir, cfg, checkpoint)
    out = work_dir / "report" if out is None else Path(out)
    pictures, missing = [], []
    for plot in PLOTS:
        figure = plot.draw(findings)
        if figure is None:
            missing.append(f"No picture of '{plot.title}': it needs {plot.needs}.")
            (out / f"{plot.name}.png").unlink(missing_ok=True)
        else:
            path = save_figure(figure, out / f"{plot.name}.png")
            pictures.append(Section(plot.title, plot.about, picture=path))
    findings = replace(findings, notes=(*findings.notes, *missing))
    return report_document(findings, pictures).write(out, "index.html")
