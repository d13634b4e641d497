"""Segment an image for several tasks over one base: ``segment.py IMAGE TASK.safetensors ...``.

Every task is an adapter file with heads. The base is in memory once; a picture is written for each
task, and one of all of them side by side.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from ..artifacts import AdapterSwitch
from ..models import load_image
from .failures import plain_errors


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", help="an image file")
    parser.add_argument("tasks", nargs="+", help="adapter files, see tools/export_adapter.py")
    parser.add_argument("--base", help="base weights (default where the first file says)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("segmented"), help="folder of pictures")
    return parser.parse_args(argv)


@plain_errors
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if not Path(args.image).is_file():
        raise FileNotFoundError(f"image not found: {args.image}")
    switch = AdapterSwitch(args.base, args.device)
    names = [switch.load(path) for path in args.tasks]
    pictures = [cv2.imread(args.image)]
    for name in names:
        start = time.perf_counter()
        model = switch.use_adapter(name)
        switched = time.perf_counter()
        classes = segment(model, args.image)
        done = time.perf_counter()
        painted = paint(pictures[0], classes, (model.dataset_meta or {}).get("palette"))
        pictures.append(painted)
        save_picture(painted, args.out / f"{name}.png")
        print(
            f"{name}: switched in {1e3 * (switched - start):.1f} ms, segmented in "
            f"{done - switched:.2f} s, {len(np.unique(classes))} classes"
        )
    save_picture(np.concatenate(pictures, axis=1), args.out / "all.png")
    print(f"pictures: {args.out}")


@torch.no_grad()
def segment(model, image: str) -> np.ndarray:
    """The class of every pixel of an image file, (H, W)."""
    result = model.test_step(load_image(model.cfg, image))[0]
    return result.pred_sem_seg.data[0].cpu().numpy().astype(np.int64)  # one logit gives floats


def paint(image: np.ndarray, classes: np.ndarray, palette=None) -> np.ndarray:
    """Lay the colours of classes over a BGR image."""
    if palette is None or len(palette) <= classes.max():
        palette = np.random.default_rng(0).integers(0, 256, (256, 3))
    colours = np.asarray(palette, np.uint8)[classes][..., ::-1]
    return cv2.addWeighted(image, 0.4, np.ascontiguousarray(colours), 0.6, 0)


def save_picture(picture: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture)
