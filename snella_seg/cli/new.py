"""Write a config for a folder of images and label maps: ``new.py DIR``.

It looks at the folder (``images`` and ``annotations``, ``labels`` or ``masks``, with or without
``train`` and ``val`` in them) and says what it saw. The names of classes are yours to fill in.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..configs import own
from ..loading.files import write_text
from ..recipes.survey import IGNORED, Survey, survey_folder
from .failures import plain_errors
from .reading import require_suffix


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with images and label maps")
    parser.add_argument("--out", type=Path, help="the config to write (FOLDER's name, .py)")
    parser.add_argument(
        "--base",
        default="snella_upernet_ade20k.py",
        help="config of ours that has the backbone and the head (snella_upernet_ade20k.py)",
    )
    parser.add_argument("--weights", help="file of base weights")
    parser.add_argument("--iterations", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--crop", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--force", action="store_true", help="write over a config that is there")
    return parser.parse_args(argv)


def crop_of(survey: Survey) -> tuple[int, int]:
    """A crop of 512 at most, in steps of 32, that fits into most images."""
    height, width = survey.sizes.most_common(1)[0][0]
    return tuple(max(min(512, side // 32 * 32), 32) for side in (height, width))


def text_of(survey: Survey, args: argparse.Namespace, lists: dict[str, str]) -> str:
    """The config."""
    height, width = survey.sizes.most_common(1)[0][0]
    crop = tuple(args.crop or crop_of(survey))
    short = max(min(crop), min(min(height, width), 2 * min(crop)))
    scale = (max(round(short * max(height, width) / min(height, width)), max(crop)), short)
    splits = []
    for split, (images, labels) in survey.folders.items():
        parts = [f'img_path="{images}"', f'seg_map_path="{labels}"']
        if split in lists:
            parts.append(f'ann_file="{lists[split]}"')
        splits.append(f"        {split}=dict({', '.join(parts)}),")
    names = ", ".join(f'"class_{i}"' for i in range(survey.classes))
    given = [f'        weights="{args.weights}",'] if args.weights else []
    lines = [
        f'_base_ = __import__("snella_seg").own("{args.base}")',
        "globals().update(",
        '    __import__("snella_seg").own_data(',
        "        _base_,",
        f'        data_root="{args.folder.resolve().as_posix()}",',
        f"        classes=({names},),  # in the order of the label values",
        *splits,
        f'        img_suffix="{survey.img_suffix}",',
        f'        seg_map_suffix="{survey.seg_map_suffix}",',
        f"        reduce_zero_label={survey.reduce_zero_label},",
        f"        scale={scale},  # images are resized to fit into this",
        f"        crop={crop},  # what the model sees in training",
        f"        batch_size={args.batch_size},",
        f"        iterations={args.iterations},",
        *given,
        "    )",
        ")",
    ]
    return "\n".join(lines) + "\n"


def seen(survey: Survey) -> list[str]:
    """What was found, a line each, with the reasons of guesses."""
    values = sorted(survey.values)
    sizes = ", ".join(f"{h}x{w}" for (h, w), _ in survey.sizes.most_common(3))
    split = "every fifth image validates" if survey.split_is_ours else "by folders"
    if survey.reduce_zero_label and 0 in survey.values:
        zero = (
            f"0 is in {survey.values[0]} of {survey.looked} label maps and 255 in none, so 0 is "
            "taken for no class (reduce_zero_label); set it to False if 0 is one"
        )
    elif survey.reduce_zero_label:
        zero = "no label map holds 0, so classes begin at 1 (reduce_zero_label)"
    else:
        zero = "0 is taken for a class"
    return [
        f"images: {len(survey.train)} to train on, {len(survey.val)} to validate on ({split})",
        f"sizes: {sizes}",
        f"label values: {', '.join(map(str, values[:12]))}{' ...' * (len(values) > 12)} in "
        f"{survey.looked} label maps; {survey.classes} classes"
        + (f"; {IGNORED} is ignored" if IGNORED in values else ""),
        f"zero: {zero}",
    ]


@plain_errors
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    out = args.out or Path(f"{args.folder.resolve().name}.py")
    require_suffix(out, ".py")
    if out.exists() and not args.force:
        raise ValueError(f"{out} is there already: give another --out, or --force")
    if not args.folder.is_dir():
        raise FileNotFoundError(f"folder not found: {args.folder}")
    own(args.base)
    survey = survey_folder(args.folder)
    lists = {}
    if survey.split_is_ours:
        for split, names in (("train", survey.train), ("val", survey.val)):
            lists[split] = f"snella_{split}.txt"
            write_text(args.folder / lists[split], "\n".join(names) + "\n")
    write_text(out, text_of(survey, args, lists))
    print("\n".join(seen(survey)))
    print(f"{out}: name the classes, then: snella-seg preflight {out}")
