"""The report as one HTML page, and as Markdown."""

import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.colors import to_hex

from ..style import embed, facts_table, html_table, markdown_table, page
from .facts import Findings, by_depth, by_kind, facts
from .player import PLAYER
from .read_history import History


class Picture(NamedTuple):
    """A picture of the report: its file, and what it shows."""

    path: Path
    title: str
    about: str


def html_page(findings: Findings, pictures: Sequence[Picture]) -> str:
    """The whole page; pictures, data and script are in it."""
    body = [facts_table(facts(findings)), *_notes(findings)]
    body += ["<h2>Allocation by allocation</h2>", player(findings)]
    for title, (header, rows) in _tables(findings):
        body += [f"<h2>{title}</h2>", html_table(header, rows)]
    for picture in pictures:
        body.append(f"<h2>{html.escape(picture.title)}</h2><p>{html.escape(picture.about)}</p>")
        body.append(embed(picture.path, picture.title))
    return page(_title(findings), "\n".join(body))


def markdown(findings: Findings, pictures: Sequence[Picture]) -> str:
    """Facts, tables and links to the pictures, which lie beside the file."""
    parts = [f"# {_title(findings)}", _facts_markdown(findings)]
    parts += [f"Note: {note}" for note in findings.notes]
    for title, (header, rows) in _tables(findings):
        parts += [f"## {title}", markdown_table(header, rows)]
    for picture in pictures:
        parts += [f"## {picture.title}", picture.about, f"![{picture.title}]({picture.path.name})"]
    return "\n\n".join(parts) + "\n"


def _facts_markdown(findings: Findings) -> str:
    return "\n".join(f"- **{name}**: {value}" for name, value in facts(findings))


def _title(findings: Findings) -> str:
    return f"Where the budget went: {findings.run}"


def _tables(findings: Findings) -> Iterable[tuple[str, tuple]]:
    yield "By kind of matrix", by_kind(findings)
    yield "By depth", by_depth(findings)


def _notes(findings: Findings) -> list[str]:
    return [f'<p class="note">{html.escape(note)}</p>' for note in findings.notes]


def player(findings: Findings) -> str:
    """The heat map with a slider over epochs: HTML, the data as JSON, and the script."""
    layout = findings.layout
    colours = [to_hex(matplotlib.colormaps["cividis"](x)) for x in np.linspace(0, 1, 64)]
    view = {
        "blocks": layout.blocks,
        "kinds": layout.kinds,
        "rows": layout.rows.tolist(),
        "columns": layout.columns.tolist(),
        "colours": colours,
    }
    text = PLAYER
    for name, data in (("HISTORY", history_data(findings.history)), ("VIEW", view)):
        text = text.replace(name, _script_json(data), 1)
    return text


def history_data(history: History) -> dict:
    """A history as JSON has it: arrays as lists, (T, L) row by row, null for what is missing."""
    fields = ("sizes", "epochs", "iters", "budget", "nonzero", "score", "norm", "entered", "left")
    return {
        "names": list(history.names),
        **{field: _listed(getattr(history, field)) for field in fields},
    }


def _listed(values: np.ndarray | None) -> list | None:
    if values is None:
        return None
    if values.dtype.kind == "f":
        values = np.where(np.isfinite(values), values.astype(object), None)
    return values.tolist()


def _script_json(data: dict) -> str:
    """JSON that may stand within a script element."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
