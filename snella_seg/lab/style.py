"""What reports share: colours, saving figures, and self-contained HTML pages."""

import base64
import html
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

#: Okabe and Ito's palette, told apart by colour-blind readers; yellow, too faint for lines on
#: white, comes last.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
#: Markers to go with the colours, so that lines differ without colour as well.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DPI = 120

_CSS = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff;
  max-width: 62rem; margin: 0 auto; padding: 1rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .5rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; border-bottom: 1px solid #ddd; }
p { max-width: 46rem; margin: .5rem 0; }
img { max-width: 100%; height: auto; display: block; margin: .75rem 0; }
table { border-collapse: collapse; margin: .75rem 0; font-size: .94rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #e2e2e2; text-align: right;
  vertical-align: top; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
th { font-weight: 600; background: #f6f6f6; }
table.facts th, table.facts td { text-align: left; }
table.facts th { background: none; }
.note { background: #fff6e0; border-left: 4px solid #E69F00; padding: .4rem .8rem; }
.scroll { overflow-x: auto; }
code { font-size: .92em; overflow-wrap: anywhere; }
""".strip()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, whose parts keep clear of each other; pyplot is not involved."""
    return Figure(figsize=(width, height), layout="constrained")


def clean(axis: Axes) -> None:
    """Give line plots their common look: no box, a faint grid behind the data."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG and return its path; folders are made.

    120 dots an inch, and the 256 colours that fit it best: a third of the bytes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True, dpi=(DPI, DPI))
    return path


def embed(path: str | Path, alt: str | None = None) -> str:
    """A PNG as an ``<img>`` tag that holds the picture itself.

    Args:
        path: the file.
        alt: what it shows, for readers who do not see it; the file's name without one.
    """
    path = Path(path)
    data = base64.b64encode(path.read_bytes()).decode()
    alt = html.escape(alt or path.stem.replace("_", " "))
    return f'<img alt="{alt}" src="data:image/png;base64,{data}">'


def html_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of plain text cells, the first column to the left and the others to the right."""

    def line(cells, tag):
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in cells) + "</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    return (
        f'<div class="scroll"><table>\n<thead>{line(header, "th")}</thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """The same table in Markdown."""
    lines = [list(map(str, row)) for row in (header, *rows)]
    rule = ["---"] + ["---:"] * (len(lines[0]) - 1)
    lines.insert(1, rule)
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in lines)


def facts_table(facts: Iterable[tuple[str, str]]) -> str:
    """Names and values, one a line, as an HTML table."""
    rows = "\n".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in facts
    )
    return f'<div class="scroll"><table class="facts"><tbody>\n{rows}\n</tbody></table></div>'


def page(title: str, body: str) -> str:
    """A whole HTML page that asks for nothing from outside.

    Args:
        title: plain text; becomes the heading, too.
        body: HTML, of :func:`embed`, :func:`html_table` and the like.
    """
    title = html.escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{title}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>\n{_CSS}\n</style>\n</head>\n<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    )
