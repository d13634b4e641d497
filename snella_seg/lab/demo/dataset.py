"""Writes the generated scenes once, in ADE20K's layout."""

import json
import shutil
from pathlib import Path

import cv2

from .scenes import CLASSES, SIZE, render

DOMAINS = ("source", "target")
STAMP = "stamp.json"
#: Raise this when the generator changes, so that old images are made anew.
VERSION = 1


def write_dataset(root: Path, training: int = 320, validation: int = 60) -> bool:
    """Write both domains to ``root`` unless the same ones are there.

    ``root/{source,target}/{images,annotations}/{training,validation}``; label 0 is 'other',
    label k is class ``CLASSES[k - 1]``. Everything is written aside and moved into place at the
    end, so an interrupted run leaves nothing that could be taken for whole.

    Args:
        root: folder to fill; an outdated one is replaced.
        training, validation: number of images of each split and domain.

    Returns:
        Whether anything was written.
    """
    if is_written(root, training, validation):
        return False
    partial = root.with_name(f"{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was interrupted
    for d, domain in enumerate(DOMAINS):
        for s, (split, count) in enumerate((("training", training), ("validation", validation))):
            _write_split(partial / domain, split, domain, count, seed=(d, s))
    (partial / STAMP).write_text(_stamp(training, validation))
    if root.exists():
        shutil.rmtree(root)
    partial.rename(root)
    return True


def is_written(root: Path, training: int = 320, validation: int = 60) -> bool:
    """Whether the scenes that this generator makes are there, whole."""
    stamp = root / STAMP
    return stamp.is_file() and stamp.read_text() == _stamp(training, validation)


def _stamp(training: int, validation: int) -> str:
    return json.dumps(
        dict(version=VERSION, size=SIZE, classes=CLASSES, training=training, validation=validation)
    )


def _write_split(folder: Path, split: str, domain: str, count: int, seed: tuple[int, int]) -> None:
    for kind in ("images", "annotations"):
        (folder / kind / split).mkdir(parents=True)
    for i in range(count):
        image, labels = render(domain, (*seed, i))
        written = cv2.imwrite(str(folder / "images" / split / f"{i:04d}.png"), image[..., ::-1])
        written &= cv2.imwrite(str(folder / "annotations" / split / f"{i:04d}.png"), labels)
        if not written:
            raise OSError(f"cannot write images into {folder}")
