"""Label maps, overlays and legends as PNG, each written whole."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..loading import atomic_write


@dataclass(frozen=True)
class Palette:
    """Names and colours of classes.

    Attributes:
        names: one a class.
        colours: RGB, (classes, 3), uint8.
    """

    names: tuple[str, ...]
    colours: np.ndarray

    @classmethod
    def of(cls, meta: dict, head) -> "Palette":
        """Of the classes and the palette of a dataset, as many as a head tells apart.

        What is missing is numbered, and has colours that are far from each other.
        """
        count = max(head.out_channels, 2)
        names = [str(name) for name in meta.get("classes") or ()][:count]
        if head.out_channels == 1 and len(names) == 1:  # of the class that the logit is for
            names.insert(0, f"not {names[0]}")
        names += [f"class {i}" for i in range(len(names), count)]
        given = np.asarray(meta.get("palette") or (), np.uint8).reshape(-1, 3)
        fits = len(given) >= count
        return cls(tuple(names), given[:count] if fits else _distinct(count))

    def legend(self) -> np.ndarray:
        """A picture of all names beside their colours, BGR."""
        side, font = 24, ImageFont.load_default()
        rows = min(len(self.names), 40)
        columns = -(-len(self.names) // rows)
        width = side * 2 + max(int(font.getlength(_printable(name))) for name in self.names)
        picture = Image.new("RGB", (width * columns, side * rows), "white")
        pen = ImageDraw.Draw(picture)
        for i, (name, colour) in enumerate(zip(self.names, self.colours, strict=True)):
            x, y = i // rows * width + 4, i % rows * side + 4
            pen.rectangle((x, y, x + 16, y + 16), fill=tuple(map(int, colour)), outline="black")
            pen.text((x + side, y + 2), _printable(name), fill="black", font=font)
        return np.asarray(picture)[..., ::-1]


def _printable(name: str) -> str:
    """What every font of Pillow has."""
    return name.encode("latin-1", "replace").decode("latin-1")


def _distinct(count: int) -> np.ndarray:
    """Colours of hues a golden angle apart, RGB; the first is black."""
    i = np.arange(count)
    hsv = np.stack([i * 0.618034 * 180 % 180, 255 - i % 3 * 60, 255 - i % 4 * 40], axis=-1)
    colours = cv2.cvtColor(hsv[None].astype(np.uint8), cv2.COLOR_HSV2RGB)[0]
    colours[0] = 0
    return colours


def overlay(picture: np.ndarray, colours: np.ndarray, opacity: float) -> np.ndarray:
    """Lay colours (RGB) over a picture (BGR), both (H, W, 3) of uint8."""
    return cv2.addWeighted(
        picture, 1 - opacity, np.ascontiguousarray(colours[..., ::-1]), opacity, 0
    )


def save_picture(picture: np.ndarray, path: Path) -> None:
    """Write a picture, BGR, as PNG."""
    _save(Image.fromarray(np.ascontiguousarray(picture[..., ::-1])), path)


def save_labels(classes: np.ndarray, path: Path, palette: Palette | None) -> None:
    """Write a label map (H, W) as PNG: of 8 bits, with a palette if one is given, or of 16."""
    if classes.max(initial=0) > 255:
        _save(Image.fromarray(classes.astype(np.uint16)), path)
        return
    picture = Image.fromarray(classes.astype(np.uint8))
    if palette is not None:
        picture.putpalette(palette.colours[:256].flatten().tolist())
    _save(picture, path)


def _save(picture: Image.Image, path: Path) -> None:
    with atomic_write(path) as partial:
        picture.save(partial, "PNG")
