"""Looks at the label maps themselves, as the loss would see them, and at the images beside them."""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from mmcv.transforms import LoadAnnotations
from PIL import Image
from rich.progress import track

from ...loading import some
from ...models.label_values import LabelRange, label_hint

#: Larger sets are sampled.
WHOLE = 2000
SAMPLE = 500
#: Share of ignored pixels above which it is worth a word.
MUCH = 0.8


@dataclass
class LabelSurvey:
    """What label maps hold.

    Attributes:
        maps, total: how many were looked at, of how many.
        pixels: label value, after reduce_zero_label and label_map -> number of pixels.
        first: label value -> the first file that holds it; ``files`` counts them.
        troubles: files that are missing, unreadable, of several channels, of another size.
    """

    total: int
    maps: int = 0
    pixels: Counter = field(default_factory=Counter)
    first: dict[int, str] = field(default_factory=dict)
    files: Counter = field(default_factory=Counter)
    troubles: list[str] = field(default_factory=list)


def survey_labels(dataset, what: str = "training set") -> LabelSurvey | None:
    """Look at all label maps of a dataset, or a sample spread over a large one.

    Args:
        dataset: of mmseg, or one that wraps others.
        what: for the progress bar.

    Returns:
        What they hold; None for a dataset that has no label maps in files.
    """
    parts = list(_plain_datasets(dataset))
    total = sum(len(part) for part, _ in parts)
    survey = LabelSurvey(total)
    step = 1 if total <= WHOLE else total / SAMPLE
    places = np.unique((np.arange(min(total, WHOLE if step == 1 else SAMPLE)) * step).astype(int))
    items = [(part, loader, i) for part, loader in parts for i in range(len(part))]
    bar = track(places, f"label maps, {what}", transient=True, disable=not sys.stderr.isatty())
    for place in bar:
        _look(survey, *items[place])
    return survey if survey.maps or survey.troubles else None


def _plain_datasets(dataset) -> Iterator[tuple]:
    """The datasets within wrappers, each with its transform that reads label maps."""
    for inner in getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]:
        if inner is not None:
            yield from _plain_datasets(inner)
            continue
        steps = getattr(getattr(dataset, "pipeline", None), "transforms", ())
        loader = next((s for s in steps if isinstance(s, LoadAnnotations)), None)
        if loader is not None and hasattr(dataset, "get_data_info"):
            yield dataset, loader


def _look(survey: LabelSurvey, dataset, loader, index: int) -> None:
    info = dataset.get_data_info(index)
    path, image = info.get("seg_map_path"), info.get("img_path")
    if path is None:
        return
    survey.maps += 1
    trouble = _trouble_of_files(image, path)
    if trouble is None:
        try:
            labels = np.asarray(loader(dict(info, seg_fields=[]))["gt_seg_map"])
        except Exception as error:  # whatever a reader of files may raise
            trouble = f"label map {path} cannot be read ({_one_line(error)})"
    if trouble is not None:
        survey.troubles.append(trouble)
        return
    for value, count in zip(*np.unique(labels, return_counts=True), strict=True):
        survey.pixels[int(value)] += int(count)
        survey.files[int(value)] += 1
        survey.first.setdefault(int(value), path)


def find_bad_file(dataset, seconds: float = 60.0) -> str | None:
    """What is wrong with the first file of a dataset that cannot be used, in a line, or None.

    For the time after a failure, whose own message names no file.

    Args:
        dataset: of mmseg, or one that wraps others.
        seconds: how long it may look.
    """
    end = time.monotonic() + seconds
    for part, _ in _plain_datasets(dataset):
        for index in range(len(part)):
            info = part.get_data_info(index)
            if info.get("seg_map_path") is None or time.monotonic() > end:
                break
            trouble = _trouble_of_files(info.get("img_path"), info["seg_map_path"])
            if trouble is not None:
                return trouble
    return None


def _trouble_of_files(image: str | None, path: str) -> str | None:
    """What is wrong with a label map, or with the image that it belongs to."""
    for file, kind in ((path, "label map"), (image, "image")):
        if file is not None and "://" not in str(file) and not Path(file).is_file():
            other = image if file == path else path
            return f"{kind} {file} is missing, which {other} needs"
    try:
        with Image.open(path) as opened:
            size = opened.size
            if len(opened.getbands()) > 1:
                return (
                    f"label map {path} is a picture of {len(opened.getbands())} channels: convert "
                    "colours to one channel of class numbers"
                )
            if opened.mode.startswith("I") or opened.mode == "F":
                most = np.asarray(opened).max()
                if most > 255:
                    return (
                        f"label map {path} holds {most}, in 16 bits: labels are read in 8 bits, "
                        "where 256 becomes 0; map them to values below 256"
                    )
    except OSError as error:
        if Path(path).suffix.lower() in (".png", ".jpg", ".bmp"):
            return f"label map {path} cannot be read ({_one_line(error)})"
        return None
    if image is None:
        return None
    try:
        with Image.open(image) as opened:
            if opened.size != size:
                return f"label map {path} is {size} pixels large, its image {opened.size}"
            opened.load()
    except OSError as error:
        if Path(image).suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp"):
            return f"image {image} cannot be read ({_one_line(error)})"
    return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:150] or type(error).__name__


def label_problems(
    survey: LabelSurvey, ranges: Sequence[LabelRange], classes: Sequence[str] | None, what: str
) -> tuple[list[str], list[str]]:
    """What would go wrong with these labels, and what is only worth a look.

    Args:
        survey: of :func:`survey_labels`.
        ranges: what the heads know.
        classes: names of the dataset.
        what: which set.

    Returns:
        Problems and warnings, a line each.
    """
    wrong, look = [], []
    if survey.troubles:
        more = len(survey.troubles) - 1
        wrong.append(survey.troubles[0] + (f"; and {more} more of such files" if more else ""))
    for known in ranges:
        outside = known.outside(survey.pixels)
        if outside:
            value = outside[0]
            wrong.append(
                f"label maps of the {what} hold {some(list(map(str, outside)))} ({value} in "
                f"{survey.files[value]} of {survey.maps} files, first in {survey.first[value]}), "
                f"{known}: {label_hint(survey.pixels, known)}"
            )
    if not ranges or not survey.pixels or wrong:
        return wrong, look
    known = ranges[0]
    total = sum(survey.pixels.values())
    ignored = survey.pixels[known.ignore_index] / total
    absent = [c for c in range(known.count) if c not in survey.pixels]
    names = [classes[c] if classes and c < len(classes) else str(c) for c in absent]
    if ignored == 1:
        wrong.append(f"all pixels of the {what} are to be ignored ({known.ignore_index})")
    elif absent and len(absent) >= known.count - 1 and survey.maps == survey.total:
        wrong.append(
            f"label maps of the {what} hold a single class, none holds {some(names)}, and "
            f"{ignored:.0%} of the pixels are ignored: are masks painted as 0 and 255, or reduced "
            "(reduce_zero_label) though 0 is a class?"
        )
    else:
        if absent:
            look.append(
                f"{len(absent)} classes are in none of {survey.maps} label maps of the {what}: "
                f"{some(names)}"
            )
        if ignored > MUCH:
            look.append(f"{ignored:.0%} of the pixels of the {what} are ignored")
    return wrong, look
