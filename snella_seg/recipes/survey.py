"""Looking at a folder of images and label maps: what a config needs to know of it."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

IMAGES, LABELS = ("images", "image", "imgs", "img"), ("annotations", "labels", "masks", "label")
TRAIN, VAL = ("train", "training"), ("val", "validation", "valid", "test")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
#: Label maps that are looked at.
SAMPLE = 200
IGNORED = 255


@dataclass
class Survey:
    """What is in a folder.

    Attributes:
        train, val: pairs of names, without suffix and relative to the two folders of a split.
        folders: of images and of label maps, for the two splits, relative to the root.
        img_suffix, seg_map_suffix: of all files.
        sizes: (height, width) of images -> how many.
        values: label value -> in how many label maps.
        looked: number of label maps that were looked at.
        split_is_ours: whether there is no split in folders.
    """

    train: list[str]
    val: list[str]
    folders: dict[str, tuple[str, str]]
    img_suffix: str
    seg_map_suffix: str
    sizes: Counter = field(default_factory=Counter)
    values: Counter = field(default_factory=Counter)
    looked: int = 0
    split_is_ours: bool = False

    @property
    def reduce_zero_label(self) -> bool:
        """Whether labels count from 1 and 0 looks like no class: no 255, and 0 not in all maps."""
        return (
            0 in self.values
            and IGNORED not in self.values
            and len(self.values) > 2
            and self.values[0] < self.looked
        ) or (0 not in self.values and bool(self.values))

    @property
    def classes(self) -> int:
        """Number of classes, by the largest value that is not ignored."""
        largest = max((v for v in self.values if v != IGNORED), default=0)
        return largest if self.reduce_zero_label else largest + 1


def survey_folder(root: Path) -> Survey:
    """Look at a folder with ``images`` and ``annotations``, ``labels`` or ``masks``.

    Splits are subfolders (``train``, ``val``), or every fifth image by name is for validation.

    Raises:
        ValueError: when images or label maps are not found or do not belong together, when a label
            map is no map of class numbers, or a training or validation set is empty.
    """
    images, labels = _child(root, IMAGES, "images"), _child(root, LABELS, "label maps")
    train, val = _child(images, TRAIN), _child(images, VAL)
    if train is not None and val is not None:
        pairs = {}
        for split, names in (("train", TRAIN), ("val", VAL)):
            folder = train if split == "train" else val
            pairs[split] = (folder, _child(labels, names, f"label maps of {folder.name}"))
    else:
        pairs = {"train": (images, labels), "val": (images, labels)}
    suffix, map_suffix = _suffixes(*pairs["train"])
    found = {s: _names(*folders, suffix, map_suffix) for s, folders in pairs.items()}
    ours = pairs["train"] == pairs["val"]
    if ours:
        every = found["train"]
        found = {"train": [n for i, n in enumerate(every) if i % 5 != 4], "val": every[4::5]}
    for split, names in found.items():
        if not names:
            raise ValueError(f"{root}: no image with a label map for the {split} set")
    folders = {s: tuple(p.relative_to(root).as_posix() for p in f) for s, f in pairs.items()}
    survey = Survey(found["train"], found["val"], folders, suffix, map_suffix, split_is_ours=ours)
    _look(survey, pairs, found)
    return survey


def _child(folder: Path, names: tuple[str, ...], what: str = "") -> Path | None:
    """The subfolder of one of some names; without ``what`` it may be missing."""
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    if not what:
        return None
    raise ValueError(f"{folder} has no folder for {what}: {', '.join(names)}")


def _suffixes(images: Path, labels: Path) -> tuple[str, str]:
    """How names end: what images and label maps of the same beginning have behind it."""
    first = next((p for p in sorted(images.rglob("*")) if p.suffix.lower() in SUFFIXES), None)
    if first is None:
        raise ValueError(f"no image in {images} ({', '.join(SUFFIXES)})")
    maps = {p.name for p in (labels / first.parent.relative_to(images)).glob("*")}
    stem, end = first.stem, first.suffix
    for cut in range(len(stem), 0, -1):
        fits = sorted(n for n in maps if n.startswith(stem[:cut]) and n.lower().endswith(SUFFIXES))
        # a shorter beginning is one only where names part at a mark: a_leftImg8bit.png, a_mask.png
        if fits and (cut == len(stem) or stem[cut] in "_-."):
            return stem[cut:] + end, fits[0][cut:]
    raise ValueError(f"no label map in {labels} whose name begins as that of {first}")


def _names(images: Path, labels: Path, suffix: str, map_suffix: str) -> list[str]:
    names = []
    for path in sorted(images.rglob(f"*{suffix}")):
        name = path.relative_to(images).as_posix().removesuffix(suffix)
        if not (labels / f"{name}{map_suffix}").is_file():
            raise ValueError(f"{path} has no label map {labels / f'{name}{map_suffix}'}")
        names.append(name)
    return names


def _look(survey: Survey, pairs: dict, found: dict) -> None:
    files = [(*pairs[split], name) for split, names in found.items() for name in names]
    step = max(len(files) / SAMPLE, 1.0)
    for images, labels, name in (files[int(i * step)] for i in range(int(len(files) / step))):
        path = labels / f"{name}{survey.seg_map_suffix}"
        with Image.open(path) as opened:
            if len(opened.getbands()) > 1:
                raise ValueError(f"label map {path} is a picture: convert colours to class numbers")
            values = np.unique(np.asarray(opened))
            size = opened.size[::-1]
        with Image.open(images / f"{name}{survey.img_suffix}") as opened:
            if opened.size[::-1] != size:
                raise ValueError(f"label map {path} is {size}, its image {opened.size[::-1]}")
        if values.max() > 255 or values.min() < 0:
            raise ValueError(f"label map {path} holds values beyond 0 to 255")
        survey.sizes[size] += 1
        survey.values.update(map(int, values))
        survey.looked += 1
