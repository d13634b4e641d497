"""Plots of the tables: bars of one setting, curves over a swept value. Okabe and Ito's palette."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

#: Colour, marker and hatch by row, so that rows differ without colour as well.
STYLES = {
    "reference": ("#D55E00", "o", ""),
    "reference_reentrant": ("#E69F00", ">", ""),
    "reference_sdpa": ("#D55E00", "o", "//"),
    "reference_dropout": ("#D55E00", "o", ".."),
    "merged": ("#0072B2", "s", ""),
    "merged_recompute": ("#0072B2", "D", "//"),
    "split": ("#56B4E9", "v", ""),
    "lora": ("#009E73", "^", ""),
    "lora_stock": ("#009E73", "<", "//"),
    "full": ("#CC79A7", "P", ""),
    "full_sdpa": ("#CC79A7", "X", "//"),
    "frozen_stock": ("#999999", "h", ""),
    "frozen": ("#999999", "d", "//"),
}
PANELS = (("ms", 1, "time of a step, ms"), ("saved", 2**20, "saved for backward, MiB"),
          ("peak", 2**20, "peak of a step, MiB"))  # fmt: skip


def bars(rows: list[dict], title: str, path: Path) -> None:
    """Time, saved bytes and peak of all rows of one table."""
    rows = [row for row in rows if row.get("ms")][::-1]
    if not rows:
        return
    figure, axes = plt.subplots(
        1, 3, figsize=(12, 1.2 + 0.32 * len(rows)), sharey=True, layout="constrained"
    )
    labels = [row["label"] for row in rows]
    for axis, (key, unit, heading) in zip(axes, PANELS, strict=True):
        values = [row[key] / unit for row in rows]
        drawn = axis.barh(labels, values, edgecolor="white")
        for bar, row in zip(drawn, rows, strict=True):
            colour, _, hatch = STYLES[row["key"]]
            bar.set(facecolor=colour, hatch=hatch)
        axis.bar_label(drawn, fmt="%.3g", padding=2, fontsize=8)
        axis.margins(x=0.15)
        axis.set_xlabel(heading)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    _save(figure, path)


def curves(rows: list[dict], over: str, title: str, path: Path) -> None:
    """Time, saved bytes and peak against a swept value, one line per variant, both axes log."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    keys = list(dict.fromkeys(row["key"] for row in rows))
    for axis, (measured, unit, heading) in zip(axes, PANELS, strict=True):
        for key in keys:
            points = [
                (row["number"], row[measured] / unit)
                for row in rows
                if row["key"] == key and row.get("ms")
            ]
            if points:
                colour, marker, hatch = STYLES[key]
                label = next(row["label"] for row in rows if row["key"] == key)
                axis.plot(
                    *zip(*sorted(points), strict=True),
                    color=colour,
                    marker=marker,
                    linestyle="--" if hatch else "-",
                    label=label,
                )
        axis.set(xscale="log", yscale="log", xlabel=over, ylabel=heading)
        numbers = sorted({row["number"] for row in rows})
        axis.set_xticks(numbers, [f"{n:g}" for n in numbers], rotation=45, fontsize=8)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(title)
    _save(figure, path)


def _save(figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
