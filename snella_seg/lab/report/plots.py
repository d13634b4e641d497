"""The pictures of a report. Each function takes findings and returns a figure, or None where the
run recorded nothing to draw."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

from ..style import MARKERS, OKABE_ITO, clean, new_figure
from .facts import Findings
from .read_history import History

_LINES = OKABE_ITO[:6]  # black is for all matrices together


def density(findings: Findings) -> Figure:
    """Share of the weights of each matrix that take part in the end."""
    values = findings.layout.grid(findings.history.density[-1])
    return _heat_map(findings, values, Normalize(0, 1), "weights that take part, % of the matrix")


def relative_norm(findings: Findings) -> Figure | None:
    """Norm of each final delta over that of its base weight."""
    if findings.deltas is None:
        return None
    values = findings.layout.grid(findings.deltas.relative_norm)
    positive = values[values > 0]
    if not len(positive):
        return None
    norm = LogNorm(positive.min(), max(positive.max(), 10 * positive.min()))
    return _heat_map(findings, values, norm, "Frobenius norm of the delta, % of the base weight's")


def _heat_map(findings: Findings, values: np.ndarray, norm: Normalize, label: str) -> Figure:
    """Blocks by kinds with the percentage in each cell; what is missing stays white."""
    rows, columns = values.shape
    height = 0.27 * max(rows, 13)
    figure = new_figure(2.2 + 0.75 * columns, 0.8 + height)
    axis = figure.subplots()
    colours = matplotlib.colormaps["cividis"]
    bottom = np.where(values <= 0, norm.vmin, values)
    image = axis.imshow(bottom, norm=norm, cmap=colours, aspect="auto", interpolation="nearest")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = np.dot(colours(norm(max(value, norm.vmin)))[:3], (0.299, 0.587, 0.114)) < 0.46
            colour = "white" if dark else "black"
            text = dict(ha="center", va="center", fontsize=9, color=colour)
            axis.text(column, row, _short(100 * value), **text)
    axis.set_xticks(range(columns), findings.layout.kinds)
    axis.set_yticks(range(rows), findings.layout.blocks)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set(xlabel="kind of matrix", ylabel="block, from input to output")
    percents = FuncFormatter(lambda value, _: _short(100 * value))
    bar = figure.colorbar(image, label=label, format=percents, aspect=height / 0.2, pad=0.03)
    bar.minorformatter = NullFormatter()
    return figure


def _short(value: float) -> str:
    """A number in at most five characters."""
    if value == 0 or value >= 99.5:
        return f"{value:.0f}"
    return (
        f"{value:.1e}"
        if value < 1e-3
        else np.format_float_positional(value, 2, fractional=False, trim="-")
    )


def budget(findings: Findings) -> Figure:
    """Weights in force at each allocation, against the schedule."""
    history, schedule = findings.history, findings.schedule
    total = int(history.sizes.sum())
    figure = new_figure(8, 4)
    axis = figure.subplots()
    if schedule is not None:
        curve = dict(color=OKABE_ITO[1], linestyle="--", linewidth=2, label="scheduled")
        if len(schedule.epochs) == 1:
            curve.update(marker="_", markersize=24)
        axis.plot(schedule.epochs, schedule.budget, **curve)
    axis.plot(
        history.epochs, history.budget, "o", color=OKABE_ITO[0], markersize=5, label="measured"
    )
    if schedule is not None and (off := schedule.off(history)).any():
        wrong = off != 0
        ring = dict(marker="o", linestyle="", markersize=10, fillstyle="none", color="black")
        axis.plot(history.epochs[wrong], history.budget[wrong], **ring, label="off the schedule")
    axis.set(ylabel="weights in force", ylim=(0, 1.05 * total))
    _epochs(axis, findings)
    axis.yaxis.set_major_formatter(FuncFormatter(_counted))
    shares = axis.secondary_yaxis("right", functions=(lambda n: n / total, lambda s: s * total))
    shares.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    shares.set_ylabel("of all adapted weights")
    shares.spines["right"].set_visible(False)
    _legend(figure, *axis.get_legend_handles_labels())
    return figure


def _counted(value: float, _) -> str:
    """A number of weights for an axis: 0, 12 k, 3.5 M."""
    for unit, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def churn(findings: Findings) -> Figure | None:
    """Weights that entered and left since the allocation before, by kind and in all."""
    history = findings.history
    if history.entered is None:
        return None
    figure = new_figure(10, 4.2)
    entering, leaving = figure.subplots(1, 2, sharey=True)
    groups = {**findings.layout.by_kind(), "all": np.ones(len(history.names), dtype=bool)}
    for i, (name, chosen) in enumerate(groups.items()):
        force = history.nonzero[:, chosen].sum(1)
        before = np.concatenate([[np.nan], force[:-1]])
        look = _look(i, history) if name != "all" else dict(color="black", linewidth=2.5)
        for axis, moved, among in ((entering, history.entered, force),
                                   (leaving, history.left, before)):  # fmt: skip
            shares = moved[:, chosen].sum(1) / np.where(among > 0, among, np.nan)
            axis.plot(history.epochs, shares, label=name, **look)
    entering.set(title="entered, of the weights then in force", ylabel="share of the weights")
    leaving.set(title="left, of the weights in force before")
    for axis in (entering, leaving):
        _epochs(axis, findings)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        axis.set_ylim(bottom=0)
    _legend(figure, *entering.get_legend_handles_labels())
    return figure


def ranks(findings: Findings) -> Figure | None:
    """Effective rank of each final delta by kind, against the rank of its factors."""
    deltas, layout = findings.deltas, findings.layout
    if deltas is None:
        return None
    count = len(layout.blocks)
    depth = layout.rows / max(1, count - 1)
    colours = matplotlib.colormaps["cividis"]
    figure = new_figure(10, 4.6)
    axes = figure.subplots(1, 2, sharey=True)
    titles = (
        "effective rank (entropy of the singular values)",
        "singular values that hold 90 % of the squared norm",
    )
    for axis, values, title in zip(
        axes, (deltas.effective_rank, deltas.rank_90), titles, strict=True
    ):
        points = layout.columns + 0.6 * (depth - 0.5)
        drawn = axis.scatter(points, values, c=depth, cmap=colours, vmin=0, vmax=1, s=26, zorder=3,
                             edgecolors="#444444", linewidths=0.5)  # fmt: skip
        for column, chosen in enumerate(layout.by_kind().values()):
            width = (column - 0.38, column + 0.38)
            median = np.median(values[chosen])
            axis.hlines(median, *width, color=OKABE_ITO[1], linewidth=2, zorder=4)
            limit = deltas.full_rank[chosen].max()
            axis.hlines(limit, *width, color="#777777", linestyle=":")
        for rank in np.unique(deltas.rank):
            axis.axhline(rank, color=OKABE_ITO[0], linestyle="--", linewidth=1.5)
        axis.set_yscale("symlog", base=2, linthresh=1)
        highest = max(deltas.full_rank.max(), deltas.rank.max())
        axis.set_ylim(0 if (values <= 0).any() else 0.8, 1.4 * highest)
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_xticks(range(len(layout.kinds)), layout.kinds)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("kind of matrix")
        clean(axis)
    axes[0].set_ylabel("rank")
    bar = figure.colorbar(drawn, ax=axes, fraction=0.03, pad=0.02, label="block")
    ends = sorted({0, count - 1})
    bar.set_ticks([0.0, 1.0][: len(ends)], labels=[layout.blocks[i] for i in ends])
    named = "/".join(map(str, np.unique(deltas.rank)))
    _legend(
        figure,
        [Line2D([], [], color=OKABE_ITO[0], linestyle="--"), Line2D([], [], color=OKABE_ITO[1]),
         Line2D([], [], color="#777777", linestyle=":")],
        [f"r = {named}: the most that LoRA can have", "median of the kind", "full rank"],
    )  # fmt: skip
    return figure


def norms(findings: Findings) -> Figure | None:
    """Mean norm of the deltas of each kind at each allocation."""
    label = "Frobenius norm of the delta, mean over blocks"
    return _by_kind(findings, findings.history.norm, label)


def importance(findings: Findings) -> Figure | None:
    """Mean importance of the matrices of each kind at each allocation."""
    label = "importance (no unit), mean over blocks"
    return _by_kind(findings, findings.history.score, label)


def _by_kind(findings: Findings, values: np.ndarray | None, label: str) -> Figure | None:
    """Means over the blocks, (T,) for each kind, on a log axis; zeros have no place there."""
    if values is None or not (values > 0).any():
        return None
    figure = new_figure(8, 4.4)
    axis = figure.subplots()
    for i, (kind, chosen) in enumerate(findings.layout.by_kind().items()):
        means = values[:, chosen].mean(1)
        means = np.where(means > 0, means, np.nan)
        axis.plot(findings.history.epochs, means, label=kind, **_look(i, findings.history))
    axis.set(ylabel=label, yscale="log")
    _epochs(axis, findings)
    _legend(figure, *axis.get_legend_handles_labels())
    return figure


def _look(index: int, history: History) -> dict:
    """Colour, marker and dashes of a kind, no two alike; of many epochs some have markers."""
    dashes = ("-", "--", ":", "-.")[index // len(_LINES) % 4]
    return dict(
        color=_LINES[index % len(_LINES)],
        marker=MARKERS[index % len(MARKERS)],
        markevery=max(1, len(history.epochs) // 16),
        markersize=4.5,
        linewidth=1.4,
        linestyle=dashes,
    )


def _epochs(axis: Axes, findings: Findings) -> None:
    """Make the x axis one of epochs, whole numbers, even where there is only one."""
    axis.set_xlabel(findings.epoch_label)
    first, last = axis.get_xlim()
    if last - first < 1:
        axis.set_xlim(findings.history.epochs[0] - 0.5, findings.history.epochs[0] + 0.5)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    clean(axis)


def _legend(figure: Figure, handles: list, labels: list[str]) -> None:
    """A legend below the axes, where it covers nothing."""
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(8, len(labels)), frameon=False
    )
