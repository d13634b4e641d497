"""What pictures share: colours, sizes, and how they are saved."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..loading import atomic_write

#: Okabe and Ito's palette, told apart by colour-blind readers; yellow, too faint for lines on
#: white, comes last.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
#: Markers to go with the colours, so that lines differ without colour as well.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DPI = 120


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, whose parts keep clear of each other; pyplot is not involved."""
    return Figure(figsize=(width, height), layout="constrained")


def clean(axis: Axes) -> None:
    """Give line plots their common look: no box, a faint grid behind the data."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG and return its path; folders are made.

    120 dots an inch, and the 256 colours that fit it best: a third of the bytes.
    """
    path = Path(path)
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture = picture.quantize(256, dither=Image.Dither.NONE)
    with atomic_write(path) as partial:
        picture.save(partial, "PNG", optimize=True, dpi=(DPI, DPI))
    return path
