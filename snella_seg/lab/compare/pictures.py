"""The pictures of a comparison."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import hsv_to_rgb
from numpy.typing import NDArray

from ..style import MARKERS, OKABE_ITO, clean, new_figure, save_figure
from .cases import Case
from .rates import mean_scores
from .statistics import by_method, class_means, mean_curve, mean_spread
from .variant import Variant

#: The same look for a method in all comparisons; others take what is left, in turn.
_FIXED = {"snella": 0, "lora": 1, "bitfit": 2, "snell": 3, "full": 4, "frozen": 6}


def look(method: str, methods: list[str]) -> dict:
    """Colour, marker and label of a method."""
    free = [i for i in range(len(OKABE_ITO)) if i not in {_FIXED.get(m) for m in methods}]
    others = [m for m in methods if m not in _FIXED]
    index = _FIXED.get(method)
    if index is None:
        index = free[others.index(method) % len(free)] if free else 7
    return dict(color=OKABE_ITO[index], marker=MARKERS[index], label=Variant.parse(method).label)


def draw_scores(rows: list[dict], path: Path) -> Path:
    """mIoU of every run, and the mean of each method."""
    methods = by_method(rows)
    figure = new_figure(7.5, 1.3 + 0.5 * len(methods))
    axis = figure.subplots()
    names = list(methods)
    for place, name in enumerate(reversed(names)):
        values = [row["mIoU"] for row in methods[name]]
        style = look(name, names)
        style.pop("label")
        axis.scatter(values, [place] * len(values), s=36, alpha=0.75, **style)
        mean, _ = mean_spread(values)
        axis.plot([mean, mean], [place - 0.3, place + 0.3], color=style["color"], linewidth=2.5)
        axis.annotate(
            f"{mean:.2f}", (mean, place + 0.3), (0, 2), textcoords="offset points",
            ha="center", va="bottom", fontsize=9,
        )  # fmt: skip
    axis.set_yticks(range(len(names)), [Variant.parse(name).label for name in reversed(names)])
    axis.set_xlabel("mIoU at the end, % (points: seeds, bars: means)")
    axis.margins(x=0.12, y=0.08)
    clean(axis)
    return save_figure(figure, path)


def draw_curves(rows: list[dict], path: Path) -> Path:
    """mIoU and loss over the iterations: means, and the range over seeds."""
    methods = by_method(rows)
    figure = new_figure(11, 4.4)
    left, right = figure.subplots(1, 2)
    for axis, key, width in ((left, "validations", 1), (right, "losses", 3)):
        for name, group in methods.items():
            curves = [_smooth(row[key], width) for row in group if row[key]]
            if not curves:
                continue
            steps, means, lows, highs = mean_curve(curves)
            style = look(name, list(methods))
            axis.plot(steps, means, markersize=5, linewidth=1.5, **style)
            if key == "validations":
                axis.fill_between(steps, lows, highs, color=style["color"], alpha=0.12, linewidth=0)
        clean(axis)
    last = [
        max(row[key][-1][0] for row in rows if row.get(key)) for key in ("validations", "losses")
    ]
    left.set_xlabel("iteration" if last[0] == last[1] else "epoch")
    right.set_xlabel("iteration")
    left.set_ylabel("mIoU, %")
    right.set_ylabel("training loss, mean over 3 logged values")
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
    )
    return save_figure(figure, path)


def _smooth(curve: list, width: int) -> list[tuple[float, float]]:
    """The mean of each ``width`` neighbouring values, at the last of their steps."""
    parts = [curve[i : i + width] for i in range(0, len(curve) - width + 1, width)]
    return [(part[-1][0], sum(value for _, value in part) / width) for part in parts]


def draw_classes(rows: list[dict], reference: str, path: Path) -> Path:
    """IoU of each class as the difference from a reference method."""
    methods = by_method(rows)
    base = class_means(methods[reference])
    others = [name for name in methods if name != reference]
    figure = new_figure(9, 4.6)
    axis = figure.subplots()
    for number, name in enumerate(others):
        means = class_means(methods[name])
        places = [i + (number - (len(others) - 1) / 2) * 0.12 for i in range(len(base))]
        gains = [means.get(c, float("nan")) - base[c] for c in base]
        axis.plot(places, gains, linestyle="none", markersize=6, **look(name, list(methods)))
    axis.axhline(0, color="#444444", linewidth=1)
    labels = [f"{name}\n{value:.0f}" for name, value in base.items()]
    axis.set_xticks(range(len(base)), labels, fontsize=8)
    if len(base) > 15:
        axis.tick_params("x", rotation=90)
    axis.set_xlabel(f"class, and its IoU in % with {Variant.parse(reference).label}")
    axis.set_ylabel(f"IoU - IoU with {Variant.parse(reference).label}, points")
    clean(axis)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return save_figure(figure, path)


def draw_search(rows: list[dict], path: Path) -> Path:
    """mIoU on the held-out training images over the learning rate."""
    methods: dict[str, list[dict]] = {}
    for row in rows:
        methods.setdefault(row["method"], []).append(row)
    figure = new_figure(7.5, 4.6)
    axis = figure.subplots()
    for name, group in methods.items():
        key = "lr" if group[0]["lr"] is not None else "head_lr"
        means = mean_scores(group, key).items()
        points = [(rate, mean) for rate, mean in means if mean is not None]
        if not points:
            continue
        style = look(name, list(methods))
        if key == "head_lr":
            style["label"] += " (rate of the heads)"
        axis.plot(*zip(*points, strict=True), **style)
    axis.set_xscale("log")
    axis.set_xlabel("learning rate")
    axis.set_ylabel("mIoU on held-out training images, %")
    clean(axis)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return save_figure(figure, path)


def draw_costs(rows: list[dict], costs: dict[str, dict], path: Path) -> Path:
    """Mean mIoU against what each method costs."""
    methods = by_method(rows)
    panels = (
        ("seconds_per_iteration", 1.0, "seconds per iteration"),
        ("gpu_peak_bytes" if _on_gpu(costs) else "peak_bytes", 2**20, "peak memory, MiB"),
        ("checkpoint_bytes", 2**20, "checkpoint with optimizer, MiB"),
    )
    figure = new_figure(12, 4.2)
    for axis, (key, unit, heading) in zip(figure.subplots(1, 3, sharey=True), panels, strict=True):
        for name, group in methods.items():
            value = costs.get(name, {}).get(key)
            if value is not None:
                mean, spread = mean_spread([row["mIoU"] for row in group])
                axis.errorbar(
                    value / unit, mean, yerr=spread, linestyle="none", markersize=8, capsize=3,
                    **look(name, list(methods)),
                )  # fmt: skip
        axis.set_xlabel(heading)
        axis.margins(x=0.15)
        axis.set_xlim(left=0)
        clean(axis)
    figure.axes[0].set_ylabel("mIoU, % (bars: deviation over seeds)")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    return save_figure(figure, path)


def draw_cases(cases: Sequence[Case], reference: str, meta: dict, path: Path) -> Path:
    """Images, their labels and what each method made of them, a row each; ignored pixels white."""
    methods = [reference, *(name for name in cases[0].made if name != reference)]
    highest = max(int(made.max()) for case in cases for made in (case.labels, *case.made.values()))
    colours = class_colours(highest + 1, meta.get("palette"))
    height, width = cases[0].labels.shape
    side = 2.4
    figure = new_figure(side * (2 + len(methods)), len(cases) * (side * height / width + 0.3) + 0.2)
    axes = figure.subplots(len(cases), 2 + len(methods), squeeze=False)
    for row, case in zip(axes, cases, strict=True):
        shown = {Path(case.name).name: case.picture, "labels": colours[case.labels]}
        for method in methods:
            title = f"{Variant.parse(method).label}: {case.scores[method]:.1f} %"
            shown[title] = colours[np.where(case.labels < 0, -1, case.made[method])]
        for axis, (title, picture) in zip(row, shown.items(), strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_title(title, fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    return save_figure(figure, path)


def class_colours(count: int, palette: Sequence | None) -> NDArray:
    """RGB of classes in 0 to 1, (count + 1, 3), the palette's where it has enough; white last."""
    given = np.asarray(palette or (), float).reshape(-1, 3) / 255
    hues = np.arange(count) * 0.618034 % 1
    drawn = hsv_to_rgb(np.stack([hues, 1 - np.arange(count) % 3 * 0.25, 0 * hues + 0.9], 1))
    return np.vstack([given[:count] if len(given) >= count else drawn, np.ones((1, 3))])


def _on_gpu(costs: dict[str, dict]) -> bool:
    return any(cost.get("gpu_peak_bytes") for cost in costs.values())
