"""Draw the pictures of docs/how_it_works.md: ``python docs/figures.py [FOLDER]``.

All curves come from snella_seg.functional, with fixed seeds. Without a folder the pictures of the
documentation are replaced.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from snella_seg.functional import (
    allocate_budget,
    budget_schedule,
    ema_importance,
    linear_kernel,
    mixed_kernel,
    quantile_threshold,
    sparsify,
)
from snella_seg.functional.sparsify import apply_threshold
from snella_seg.lab.style import OKABE_ITO, clean, new_figure, save_figure

FOLDER = Path(__file__).parent / "images"
BLUE, RED, GREEN, PINK, ORANGE = OKABE_ITO[:5]
RANK, HEADS, SIDE = 8, 2, 64


def factors() -> tuple[torch.Tensor, torch.Tensor]:
    """P and Q of a square matrix, as spread out as training may leave them."""
    generator = torch.Generator().manual_seed(0)
    shape = (HEADS, SIDE, RANK // HEADS)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))


def kernels() -> Figure:
    """The mixed kernel and LoRA's product of the same factors, with their singular values."""
    mixed, product = mixed_kernel(*factors(), 1.0, 1.0, 0.0), linear_kernel(*factors())
    figure = new_figure(12, 3.7)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.1))
    colours = matplotlib.colormaps["PuOr"].resampled(21)
    for axis, kernel, title in (
        (left, mixed, f"mixed kernel K, r = {RANK}"),
        (middle, product, f"linear kernel (LoRA), r = {RANK}"),
    ):
        limit = float(kernel.abs().max())
        image = axis.imshow(kernel, cmap=colours, vmin=-limit, vmax=limit, interpolation="nearest")
        axis.set_title(title, fontsize=11)
        axis.set(xlabel="input i", ylabel="output o")
        figure.colorbar(image, ax=axis, shrink=0.9, label="weight change (no unit)")
    for kernel, label, look in (
        (mixed, "mixed", dict(color=BLUE, marker="o")),
        (sparsify(mixed, 0.8), "mixed, largest 20 %", dict(color=GREEN, marker="^", linestyle=":")),
        (product, "linear (LoRA)", dict(color=RED, marker="s", linestyle="--")),
    ):
        values = torch.linalg.svdvals(kernel)
        values = values[values > 1e-9 * values[0]] / values[0]
        right.plot(range(1, len(values) + 1), values, label=label, markersize=4, **look)
    right.axvline(RANK, color="#777777", linewidth=1)
    right.text(RANK + 1, 1.6e-3, f"r = {RANK}", color="#444444")
    right.set_yscale("log")
    right.set(xlabel="number of the singular value", ylabel="singular value / largest")
    right.set_ylim(1e-3, 1.5)
    right.legend(frameon=False, fontsize=9)
    clean(right)
    return figure


def sparsifiers() -> Figure:
    """Where the threshold lies among the magnitudes of K, and what becomes of K beside it."""
    mixed = mixed_kernel(*factors(), 1.0, 1.0, 0.0)
    sparsity = 0.8
    threshold = quantile_threshold(mixed, sparsity)
    figure = new_figure(10, 3.8)
    left, right = figure.subplots(1, 2)
    edges = np.linspace(0, float(mixed.abs().max()), 41)
    edges = np.sort(np.append(edges, float(threshold)))
    counts, _ = np.histogram(mixed.abs(), edges)
    density = counts / np.diff(edges).clip(1e-3) / mixed.numel()
    above = edges[:-1] >= float(threshold)
    looks = (
        (~above, dict(color="#d0d0d0", label="take no part")),
        (above, dict(color=BLUE, hatch="///", edgecolor="white", label="take part")),
    )
    for chosen, look in looks:
        left.bar(edges[:-1][chosen], density[chosen], np.diff(edges)[chosen], align="edge", **look)
    left.axvline(float(threshold), color="black", linestyle="--", label=f"t, for s = {sparsity}")
    left.set(
        xlabel="|K| of a weight",
        ylabel="density, per unit of |K|",
    )
    left.legend(frameon=False)
    clean(left)
    steps = torch.linspace(-1, 1, 401, dtype=torch.float64)
    for mode, look in (
        ("none", dict(color="#777777", linestyle="-", linewidth=1)),
        ("hard", dict(color=RED, linestyle="--")),
        ("weighted", dict(color=BLUE, linestyle="-", linewidth=2.2)),
        ("soft", dict(color=GREEN, linestyle="-.")),
    ):
        right.plot(steps, apply_threshold(steps, torch.tensor(0.4), mode), label=mode, **look)
    for side in (-0.4, 0.4):
        right.axvline(side, color="black", linestyle=":", linewidth=1)
    right.text(0.42, -0.95, "t", fontsize=12)
    right.text(-0.5, -0.95, "-t", fontsize=12)
    right.set(xlabel="K of a weight, for t = 0.4", ylabel="its delta")
    right.legend(frameon=False)
    clean(right)
    return figure


def importance() -> Figure:
    """Sensitivity of a parameter from step to step, its average and its uncertainty."""
    generator = np.random.default_rng(3)
    means = np.where(np.arange(120) < 60, 0.3, 1.0)
    means[95:] = 0.1
    raw = torch.from_numpy(means * generator.gamma(2.0, 0.5, 120))
    average = uncertainty = torch.zeros((), dtype=torch.float64)
    averages, uncertainties = [], []
    for value in raw:
        average, uncertainty = ema_importance(value, average, uncertainty, 0.85, 0.85)
        averages.append(average)
        uncertainties.append(uncertainty)
    figure = new_figure(8, 3.4)
    axis = figure.subplots()
    axis.plot(raw, ".", color="#999999", label="sensitivity I")
    axis.plot(averages, color=BLUE, linewidth=2, label="average")
    axis.plot(uncertainties, color=RED, linestyle="--", linewidth=1.8, label="uncertainty U")
    product = np.multiply(averages, uncertainties)
    axis.plot(product, color=GREEN, linestyle="-.", linewidth=1.8, label="average times U")
    axis.set(xlabel="optimisation step", ylabel="|p · grad p|, made up (no unit)")
    axis.legend(frameon=False, ncols=2)
    clean(axis)
    return figure


def water_filling() -> Figure:
    """Scores of six matrices, and the weights that they get from two budgets."""
    names = ("q", "k", "v", "proj", "fc1", "fc2")
    sizes = np.array([1, 1, 1, 1, 4, 4]) * 1000
    scores = np.array([2.0, 1.0, 10.0, 4.0, 6.0, 5.0])
    figure = new_figure(10.5, 3.6)
    axes = figure.subplots(1, 3)
    axes[0].bar(names, scores, color=PINK, hatch="..", edgecolor="white")
    axes[0].set(ylabel="score (no unit)", xlabel="matrix")
    axes[0].set_title("what matrices score", fontsize=11)
    clean(axes[0])
    for axis, share in zip(axes[1:], (0.6, 0.2), strict=True):
        _shares(axis, names, scores, sizes, int(share * sizes.sum()))
        axis.set_title(f"a budget of {share:.0%} of all weights", fontsize=11)
    axes[1].set_ylabel("weights")
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _shares(axis: Axes, names, scores, sizes, budget: int) -> None:
    places = np.arange(len(names))
    shares = allocate_budget(scores, sizes, budget)
    axis.bar(places, sizes, color="none", edgecolor="black", label="size of the matrix, its cap")
    axis.bar(places, shares, 0.6, color=BLUE, label="given")
    plain = dict(marker="D", color=ORANGE, markeredgecolor="black", linestyle="", markersize=6)
    axis.plot(places, budget * scores / scores.sum(), **plain, label="in proportion to the score")
    axis.set_xticks(places, names)
    axis.set(xlabel="matrix", ylim=(0, 4600))
    clean(axis)


def budget() -> Figure:
    """The cubic schedule by default, with warm-up and final epochs, and from another start."""
    total, epochs = 40, range(40)
    figure = new_figure(8, 3.6)
    axis = figure.subplots()
    for start, warmup, final, label, look in (
        (1.0, 0, 1, "default: no warm-up, one final epoch", dict(color=BLUE, marker="o")),
        (1.0, 8, 8, "8 epochs of warm-up, 8 final ones", dict(color=GREEN, marker="^")),
        (0.6, 0, 1, "initial_sparsity of 0.4", dict(color=RED, marker="s")),
    ):
        ends = (round(start * 10**6), 2 * 10**5)
        values = [budget_schedule(e, total, *ends, warmup, final) / 1e6 for e in epochs]
        line = dict(drawstyle="steps-post", markersize=5, markevery=3, linewidth=1.6)
        axis.plot(epochs, values, label=label, **line, **look)
    axis.axhline(0.2, color="#777777", linestyle=":", label="target, for target_sparsity of 0.8")
    axis.set(xlabel="epoch", ylabel="weights in force, % of all", ylim=(0, 1.05))
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    axis.legend(frameon=False)
    clean(axis)
    return figure


FIGURES = (kernels, sparsifiers, importance, water_filling, budget)


def draw(folder: Path = FOLDER) -> list[Path]:
    """Write all pictures into a folder and return their paths."""
    return [save_figure(figure(), folder / f"{figure.__name__}.png") for figure in FIGURES]


if __name__ == "__main__":
    for path in draw(Path(sys.argv[1]) if sys.argv[1:] else FOLDER):
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
