"""Segment images: ``segment.py CONFIG CHECKPOINT IMAGES... --out DIR``.

Images are files, folders and patterns; config and checkpoint may stand behind them, as
``--config`` and ``--checkpoint``. ``DIR`` then holds ``labels`` (label maps), ``overlays``
and ``legend.png``. Instead of a config and a checkpoint, adapter files with heads may be given
among the images: ``segment.py IMAGES... night.safetensors fog.safetensors``. Several tasks share
one base, and each has a folder of its name.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.utils import ProgressBar
from torch import nn

from ..artifacts import AdapterSwitch
from ..configs import load_config
from ..loading.files import make_folder
from ..models import build_segmentor
from ..models.inference import dataset_meta, read_picture, segment
from .drawing import Palette, overlay, save_labels, save_picture
from .failures import plain_errors
from .image_files import find_images, output_names
from .reading import refuse_without_adapters


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="IMAGE",
        help="config and checkpoint, then image files, folders or patterns; or adapter files, see "
        "tools/export_adapter.py, among images",
    )
    parser.add_argument("--config", help="config of --checkpoint")
    parser.add_argument("--checkpoint", help="a .pth file, slim, whole or merged, or adapter file")
    parser.add_argument("--base", help="base weights (default where the first file says)")
    parser.add_argument("--out", type=Path, default=Path("segmented"), help="folder to write to")
    parser.add_argument("--opacity", type=float, default=0.6, help="of the colours (0.6)")
    parser.add_argument(
        "--labels",
        choices=["palette", "plain", "none"],
        default="palette",
        help="label maps as PNG with a palette or as plain numbers, or none (palette)",
    )
    parser.add_argument("--threshold", type=float, help="of a head with one logit")
    parser.add_argument("--mode", choices=["whole", "slide"], help="default as the config says")
    parser.add_argument("--crop", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of slide")
    parser.add_argument("--stride", type=int, nargs=2, metavar=("DOWN", "RIGHT"), help="of slide")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    if args.inputs[0].endswith(".py") and not (args.config or args.checkpoint):
        args.config = args.inputs.pop(0)
        args.checkpoint = args.inputs.pop(0) if args.inputs else None
    return args


@plain_errors
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if not 0 <= args.opacity <= 1:
        raise ValueError(f"--opacity must lie between 0 and 1, got {args.opacity}")
    for name in ("crop", "stride"):
        if any(side < 1 for side in getattr(args, name) or ()):
            raise ValueError(f"--{name} must be two positive numbers, got {getattr(args, name)}")
    tasks = [name for name in args.inputs if name.endswith(".safetensors")]
    images = find_images([name for name in args.inputs if name not in tasks], beside=args.out)
    names = output_names(images)
    models = load_models(args, tasks)
    make_folder(args.out)
    failures: dict[Path, str] = {}
    shown = []
    for name, model in models:
        folder = args.out / name if len(tasks) > 1 else args.out
        shown.append(folder / "overlays")
        written = [folder / kind / one for kind in ("labels", "overlays") for one in names.values()]
        refuse_inputs(images, [*written, folder / "legend.png"])
        adjust(model, args)
        start = time.perf_counter()
        failed, classes = run(model, names, folder, args)
        failures.update(failed)
        print(
            f"{name}: {len(images) - len(failed)} images segmented in "
            f"{time.perf_counter() - start:.2f} s, {classes} classes"
        )
    if len(shown) > 1:
        for image in (one for one in images if one not in failures):
            row = [cv2.imread(str(folder / names[image])) for folder in shown]
            save_picture(np.concatenate(row, axis=1), args.out / "side_by_side" / names[image])
    print(f"pictures: {args.out}")
    if failures:
        raise ValueError(
            f"{len(failures)} of {len(images)} images could not be segmented, the first: "
            f"{next(iter(failures.values()))}"
        )


def load_models(args: argparse.Namespace, tasks: list[str]) -> Iterator[tuple[str, nn.Module]]:
    """Name and segmentor of each task; one is in use at a time."""
    if bool(tasks) == bool(args.config or args.checkpoint):
        raise ValueError(
            "give a config and its checkpoint before the images, or adapter files (.safetensors) "
            "among them"
        )
    if not tasks:
        if not (args.config and args.checkpoint):
            raise ValueError("--config and --checkpoint go together: give both")
        cfg = load_config(args.config)
        refuse_without_adapters(cfg, args.checkpoint)
        model = build_segmentor(cfg, args.checkpoint).to(args.device)
        return iter([(Path(args.checkpoint).stem, model)])
    switch = AdapterSwitch(args.base, args.device)
    loaded = [switch.load(path) for path in tasks]
    return ((name, switch.use_adapter(name)) for name in loaded)


def adjust(model: nn.Module, args: argparse.Namespace) -> None:
    """Set the threshold, and how whole images are gone over.

    Raises:
        ValueError: when the model has no place for it.
    """
    if args.threshold is not None:
        if model.decode_head.out_channels != 1:
            raise ValueError(
                f"--threshold is for heads with one logit, this one has "
                f"{model.decode_head.out_channels}: leave it out"
            )
        model.decode_head.threshold = args.threshold
    if args.mode is None and not (args.crop or args.stride):
        return
    config = ConfigDict(model.test_cfg or {}, mode=args.mode or "slide")
    if config.mode == "slide":
        size = getattr(model.data_preprocessor, "size", None)
        crop = args.crop or config.get("crop_size") or size
        if crop is None:
            raise ValueError(
                "--mode slide needs --crop HEIGHT WIDTH, which the config does not say"
            )
        stride = args.stride or (None if args.crop else config.get("stride"))
        config.crop_size = tuple(crop)
        config.stride = tuple(stride or (max(2 * side // 3, 1) for side in crop))
        if any(step > side for step, side in zip(config.stride, config.crop_size, strict=True)):
            raise ValueError(f"--stride {config.stride} leaves gaps between crops of {crop}")
    model.test_cfg = config


def refuse_inputs(images: Sequence[Path], written: Sequence[Path]) -> None:
    """Refuse to write over what is read.

    Raises:
        ValueError: naming the image.
    """
    given = {image.resolve() for image in images}
    for path in written:
        if path.resolve() in given:
            raise ValueError(f"{path} is an image to be segmented: give another --out")


def run(model, names: dict[Path, str], folder: Path, args) -> tuple[dict[Path, str], int]:
    """Segment images and write what is seen of them; what cannot be read is told of and left.

    Returns:
        Those that failed, with the reason, and the number of classes that were found.
    """
    palette = Palette.of(dataset_meta(model), model.decode_head)
    failed: dict[Path, str] = {}
    found: set[int] = set()
    bar = ProgressBar(len(names), file=sys.stderr) if sys.stderr.isatty() else None
    for image, name in names.items():
        try:
            classes = segment(model, str(image))
            picture = read_picture(model.cfg, str(image))
        except (OSError, ValueError) as error:
            failed[image] = " ".join(str(error).split())
            print(f"left out: {failed[image]}", file=sys.stderr)
            continue
        finally:
            if bar is not None:
                bar.update()
        found.update(map(int, np.unique(classes)))
        painted = overlay(picture, palette.colours[classes], args.opacity)
        save_picture(painted, folder / "overlays" / name)
        if args.labels != "none":
            save_labels(
                classes, folder / "labels" / name, palette if args.labels == "palette" else None
            )
    if bar is not None:
        print(file=sys.stderr)
    if found:
        save_picture(palette.legend(), folder / "legend.png")
    return failed, len(found)
