"""The report of a comparison: Markdown, pictures, and one HTML page."""

import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..document import Document, Section
from ..text import size
from . import pictures as plots
from .cases import Case
from .rates import mean_scores
from .statistics import (
    by_method,
    class_means,
    confidence,
    mean_spread,
    paired_difference,
    reference_method,
    time_spent,
)
from .variant import Variant


def write_study_report(
    study: dict, folder: Path, cases: Sequence[Case] = (), meta: Mapping[str, Any] | None = None
) -> Path:
    """Write ``report.md``, ``report.html`` and pictures; return the path of the page.

    Args:
        study: what ``study.json`` holds.
        folder: where to write.
        cases: images to show.
        meta: of the dataset, for their colours.

    Raises:
        ValueError: when no run of the study has ended well.
    """
    if not by_method(study["runs"] or study["search"]):
        raise ValueError("no run of the comparison has ended well: there is nothing to report")
    title, sections = f"Comparison: {Path(study['config']).stem}", []
    if study["runs"]:
        sections = [*_scores(study, folder), *_classes(study, folder)]
        sections += [*_cases(study, cases, meta or {}, folder), *_costs(study, folder)]
    sections += [*_search(study, folder), *_failures(study)]
    return Document(title, _facts(study), sections).write(folder, "report.html")


def _facts(study: dict) -> list[tuple[str, str]]:
    facts = [("command", study["command"])] if study.get("command") else []
    facts.append(("runs", f"{len(study['runs'])}, {study['seeds']} seeds of each method"))
    facts.append(("schedule", study["schedule"]))
    facts.append(("CPU time", time_spent(study["search"] + study["runs"])))
    facts += [(name, text) for name, text in study.get("environment", {}).items()]
    return facts


def environment() -> dict[str, str]:
    """The machine and the versions, for readers of figures."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = lines[0].partition(":")[2].strip() if lines else cpu
    found = {"processor": f"{cpu}, {os.cpu_count()} cores"}
    if torch.cuda.is_available():
        found["GPU"] = torch.cuda.get_device_name()
    names = ("snella_seg", "torch", "timm")
    families = (("mmengine", "onedl-mmengine"), ("mmsegmentation", "onedl-mmsegmentation"))
    found["versions"] = ", ".join(f"{n} {_version((n,))}" for n in names) + "".join(
        f", {family[0]} {_version(family)}" for family in families
    )
    return found


def _version(names: Iterable[str]) -> str:
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "?"


def _scores(study: dict, folder: Path) -> list[Section]:
    """The main table with its picture, and the curves."""
    methods, costs = by_method(study["runs"]), study.get("costs", {})
    header = [
        "method", "mIoU, %", "NLL", "ECE, %", "learning rate", "learnable in the backbone",
        "non-zero weights", "checkpoint", "CPU s of a run", "s / iteration", "peak memory",
    ]  # fmt: skip
    rows = []
    for name, group in methods.items():
        cost = costs.get(name, {})
        rate = group[0]["lr"]
        rows.append([
            Variant.parse(name).label,
            _mean_text([row["mIoU"] for row in group]),
            _mean_of(group, "NLL", "{:.3f}"),
            _mean_of(group, "ECE", "{:.1f}"),
            "-" if rate is None else f"{rate:g}",
            _number(cost.get("learnable")),
            _nonzero(group[0], cost),
            size(group[0]["checkpoint"]),
            _mean_of(group, "cpu_seconds", "{:.0f}"),
            _or_dash(cost.get("seconds_per_iteration"), "{:.3f}"),
            _peak(cost),
        ])  # fmt: skip
    reference = "snella" if "snella" in methods else next(iter(methods))
    text = f"mIoU on the validation set after the last iteration; heads learn at {_heads(study)}."
    if study.get("source"):
        header.insert(4, "forgetting")
        for row, group in zip(rows, methods.values(), strict=True):
            row.insert(4, _mean_text([one["forgetting"] for one in group]))
        text += (
            " Forgetting: points of mIoU that the source model, which scored "
            f"{study['source']['mIoU']:.2f} on its own task, loses there by the adapted backbone "
            "under its old head."
        )
    sections = [
        Section(
            "Scores", text, header, rows, plots.draw_scores(study["runs"], folder / "scores.png")
        )
    ]
    if len(methods) > 1:
        sections.append(_differences(methods, reference))
    curves = plots.draw_curves(study["runs"], folder / "curves.png")
    return [*sections, Section("Curves", "Means over seeds; bands span them.", picture=curves)]


def _heads(study: dict) -> str:
    rate = study["runs"][0]["head_lr"]
    return "the rate of the config" if rate is None else f"{rate:g}"


def _differences(methods: dict[str, list[dict]], reference: str) -> Section:
    rows, header = [], ["method", "difference", "95 % interval", "NLL", "95 % interval"]
    for name, group in methods.items():
        if name != reference:
            score = _difference(methods[reference], group, "mIoU", "+.2f")
            likelihood = _difference(methods[reference], group, "NLL", "+.4f")
            if score != ("-", "-"):
                rows.append([Variant.parse(name).label, *score, *likelihood])
    label = Variant.parse(reference).label
    text = (
        f"{label} minus each method, in points of mIoU (higher is better) and in NLL (lower is "
        "better): the mean over seeds of the difference at equal seed, its standard error, and the "
        "95 % interval by Student's t. Where that holds zero the difference may be chance."
    )
    return Section(f"{label} against the others", text, header, rows)


def _difference(rows: list[dict], others: list[dict], key: str, form: str) -> tuple[str, str]:
    """A mean difference with its standard error, and its interval; dashes where not known."""
    mean, error = paired_difference(rows, others, key)
    if mean != mean:  # no seed in common
        return "-", "-"
    if error is None:
        return f"{mean:{form}}", "-"
    half = confidence(error, min(len(rows), len(others)))
    return (
        f"{mean:{form}} ± {error:{form[1:]}}",
        f"{mean - half:{form}} to {mean + half:{form}}",
    )


def _classes(study: dict, folder: Path) -> list[Section]:
    methods = by_method(study["runs"])
    means = {name: class_means(group) for name, group in methods.items()}
    names = dict.fromkeys(c for table in means.values() for c in table)
    if not names:
        return []
    reference = reference_method(methods)
    rows = [[c, *(_or_dash(table.get(c), "{:.1f}") for table in means.values())] for c in names]
    header = ["class", *(Variant.parse(name).label for name in means)]
    picture = None
    if len(methods) > 1:
        picture = plots.draw_classes(study["runs"], reference, folder / "classes.png")
    return [Section("IoU of each class, %", "Means over seeds.", header, rows, picture)]


def _cases(
    study: dict, cases: Sequence[Case], meta: Mapping[str, Any], folder: Path
) -> list[Section]:
    if not cases:
        return []
    reference = reference_method(by_method(study["runs"]))
    text = (
        "Validation images by the runs of the first seed, evenly from the one that gains most "
        f"over {Variant.parse(reference).label} to the one that loses most, in the mean of all "
        "other methods. Figures: mean IoU over the classes in the image. White: ignored."
    )
    picture = plots.draw_cases(cases, reference, meta, folder / "cases.png")
    return [Section("Images", text, picture=picture)]


def _costs(study: dict, folder: Path) -> list[Section]:
    costs = study.get("costs", {})
    known = {m: c for m, c in costs.items() if c.get("seconds_per_iteration")}
    if not known:
        return []
    base = next(iter(known.values()))
    rows = [
        [
            Variant.parse(m).label,
            f"{c['seconds_per_iteration']:.3f}",
            f"{c['seconds_per_iteration'] / base['seconds_per_iteration']:.2f}",
            f"{c['seconds_at_start']:.3f}",
            f"{c['seconds_at_end']:.3f}",
            _or_dash(c["seconds_per_validation_image"], "{:.3f}"),
            _peak(c),
            _or_dash(c["checkpoint_bytes"], size),
        ]
        for m, c in known.items()
    ]
    first = Variant.parse(next(iter(known))).label
    header = [
        "method", "s / iteration", f"/ {first}", "at the first budget", "at the last budget",
        "s / validation image", "peak memory", "checkpoint with optimizer",
    ]  # fmt: skip
    text = (
        f"Medians of {study['cost_rounds']} rounds; in each, one preflight of every method after "
        "the other. Peak memory is that of the training process."
    )
    picture = plots.draw_costs(study["runs"], costs, folder / "costs.png")
    return [Section("Costs", text, header, rows, picture)]


def _search(study: dict, folder: Path) -> list[Section]:
    rows = study["search"]
    judged = [row for row in rows if row["lr"] is not None]
    if not any("error" not in row for row in rows):
        return []
    runs = max(1, len({row["seed"] for row in rows}))
    text = (
        f"{'One run' if runs == 1 else f'Means of {runs} runs'} each, {study['search_schedule']}, "
        "trained on a part of the training images and validated on the other "
        f"{study['holdout']:.0%} of them. The validation set has no part. A rate one of whose runs "
        "diverged has no figure."
    )
    heads = mean_scores([row for row in rows if row["lr"] is None], "head_lr")
    if heads:
        told = ", ".join(f"{rate:g}: {_or_dash(mean, '{:.2f}')}" for rate, mean in heads.items())
        text += f" Rates of the heads, frozen backbone: {told}."
    rates = sorted({row["lr"] for row in judged})
    header, table = ["method", *(f"{rate:g}" for rate in rates)], []
    for name in dict.fromkeys(row["method"] for row in judged):
        scores = mean_scores([row for row in judged if row["method"] == name], "lr")
        best = max(scores, key=lambda rate: scores[rate] or 0.0)
        cells = [_or_dash(scores.get(rate), "{:.2f}") for rate in rates]
        cells[rates.index(best)] += " (best)"
        table.append([Variant.parse(name).label, *cells])
    picture = plots.draw_search(rows, folder / "search.png")
    return [Section("Choice of the learning rates", text, header, table, picture)]


def _failures(study: dict) -> list[Section]:
    failed = [row for row in study["search"] + study["runs"] if "error" in row]
    failed += [
        {"folder": f"cost of {m}", **c} for m, c in study.get("costs", {}).items() if "error" in c
    ]
    rows = [[row["folder"], row["error"]] for row in failed]
    return [Section("Failed runs", "", ["run", "error"], rows)] if rows else []


def _mean_text(values: list[float]) -> str:
    mean, spread = mean_spread(values)
    return f"{mean:.2f}" if spread is None else f"{mean:.2f} ± {spread:.2f}"


def _mean_of(rows: list[dict], key: str, form: str) -> str:
    """The mean of a figure that runs may lack."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return _or_dash(statistics.fmean(values) if values else None, form)


def _nonzero(row: dict, cost: dict) -> str:
    weights = cost.get("weights")
    if not weights:
        return "-"
    count = row["allocation"]["budget"] if row.get("allocation") else weights
    return f"{count:,} ({count / weights:.0%})"


def _peak(cost: dict) -> str:
    return _or_dash(cost.get("gpu_peak_bytes") or cost.get("peak_bytes"), size)


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _or_dash(value, form) -> str:
    if value is None:
        return "-"
    return form.format(value) if isinstance(form, str) else form(value)
