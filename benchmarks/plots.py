"""Curves over a swept value, in Okabe and Ito's palette."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

#: Colour, marker and whether dashed by row, so that rows differ without colour as well.
STYLES = {
    "reference": ("#D55E00", "o", False),
    "reference_reentrant": ("#E69F00", ">", False),
    "reference_sdpa": ("#D55E00", "o", True),
    "reference_dropout": ("#D55E00", "o", True),
    "merged": ("#0072B2", "s", False),
    "merged_recompute": ("#0072B2", "D", True),
    "split": ("#56B4E9", "v", False),
    "lora": ("#009E73", "^", False),
    "lora_ours": ("#009E73", "<", True),
    "lora_stock": ("#009E73", "v", True),
    "full": ("#CC79A7", "P", False),
    "full_sdpa": ("#CC79A7", "X", True),
    "frozen_stock": ("#999999", "h", False),
    "frozen": ("#999999", "d", True),
}
PANELS = (("ms", 1, "time of a step, ms"), ("saved", 2**20, "saved for backward, MiB"),
          ("peak", 2**20, "peak of a step, MiB"))  # fmt: skip


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
                colour, marker, dashed = STYLES[key]
                label = next(row["label"] for row in rows if row["key"] == key)
                axis.plot(
                    *zip(*sorted(points), strict=True),
                    color=colour,
                    marker=marker,
                    linestyle="--" if dashed else "-",
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
