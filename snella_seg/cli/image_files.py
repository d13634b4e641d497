"""Which image files a command is given, and what it calls what it makes of them."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

#: Suffixes of what is taken for an image in a folder.
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".npy")


def find_images(given: Sequence[str], beside: Path) -> list[Path]:
    """Files, all images in folders and below them, and what patterns (``*``) match; each once.

    Args:
        given: as on a command line.
        beside: a folder to be written to; what folders and patterns hold of it is left out.

    Raises:
        FileNotFoundError: when a name leads to no image.
        ValueError: when none is given.
    """
    found: dict[Path, Path] = {}
    for name in given:
        images = [path for path in _expand(name) if _named(path, name) or not _within(path, beside)]
        if not images:
            raise FileNotFoundError(f"image not found: {name}" + _why(Path(name)))
        for path in images:
            found.setdefault(path.resolve(), path)
    if not found:
        raise ValueError("no images: give files, folders or patterns")
    return list(found.values())


def _expand(name: str) -> Iterator[Path]:
    path = Path(name)
    if path.is_file():
        yield path
    elif path.is_dir():
        inside = sorted(one for one in path.rglob("*") if one.suffix.lower() in IMAGES)
        yield from (one for one in inside if one.is_file())
    elif glob.has_magic(name):
        yield from filter(Path.is_file, map(Path, sorted(glob.glob(name, recursive=True))))


def _named(path: Path, name: str) -> bool:
    return str(path) == str(Path(name))


def _within(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def _why(path: Path) -> str:
    return f" (the folder holds none of {', '.join(IMAGES)})" if path.is_dir() else ""


def output_names(images: Sequence[Path]) -> dict[Path, str]:
    """A name in PNG for what is made of each image, no two the same.

    Names are relative to the folder that all images share; where two differ in their suffix only,
    they keep it.
    """
    parents = [path.resolve().parent for path in images]
    shared = Path(os.path.commonpath(parents))
    whole = {
        path: (parent / path.name).relative_to(shared)
        for path, parent in zip(images, parents, strict=True)
    }
    short = {path: name.with_suffix(".png").as_posix() for path, name in whole.items()}
    count = Counter(name.lower() for name in short.values())
    return {
        path: name if count[name.lower()] == 1 else f"{whole[path].as_posix()}.png"
        for path, name in short.items()
    }
