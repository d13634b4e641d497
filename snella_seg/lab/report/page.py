"""The report of a run as a document."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.colors import to_hex

from ..document import Document, Section, render_template
from .facts import Findings, by_depth, by_kind, facts
from .read_history import History


def report_document(findings: Findings, pictures: Sequence[Section]) -> Document:
    """Facts, the heat map that plays, tables by kind and by depth, pictures."""
    tables = (("By kind of matrix", by_kind), ("By depth", by_depth))
    sections = [Section("Allocation by allocation", live=player(findings))]
    for title, make in tables:
        header, rows = make(findings)
        sections.append(Section(title, header=header, rows=rows))
    return Document(
        f"Where the budget went: {findings.run}",
        facts(findings),
        [*sections, *pictures],
        findings.notes,
    )


def player(findings: Findings):
    """The heat map with a slider over epochs: HTML, the data as JSON, and the script."""
    layout = findings.layout
    view = {
        "blocks": layout.blocks,
        "kinds": layout.kinds,
        "rows": layout.rows.tolist(),
        "columns": layout.columns.tolist(),
        "colours": [to_hex(matplotlib.colormaps["cividis"](x)) for x in np.linspace(0, 1, 64)],
    }
    return render_template("player.html", history=history_data(findings.history), view=view)


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
