"""Reports: facts, then sections of text, tables and pictures, as Markdown and as one HTML page."""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ..loading import write_text


@dataclass(frozen=True)
class Section:
    """A heading, and what stands under it; all but the heading may be missing.

    Attributes:
        title: plain text, as all that follows.
        text: a paragraph.
        header: of the table, a cell a column.
        rows: of the table.
        picture: a PNG, which lies beside the report.
        live: HTML of a template of ours, for the page alone.
    """

    title: str
    text: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    picture: Path | None = None
    live: Markup | None = None


@dataclass(frozen=True)
class Document:
    """A report.

    Attributes:
        title: its heading.
        facts: names and values, a line each.
        sections: in their order.
        notes: what is missing and why, or other warnings.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """The report as Markdown, with links to the pictures beside it."""
        facts = "\n".join(f"- **{name}**: {value}" for name, value in self.facts)
        parts = [f"# {self.title}", facts, *(f"Note: {note}" for note in self.notes)]
        for section in self.sections:
            if not (section.text or section.rows or section.picture):
                continue
            parts += [f"## {section.title}", section.text]
            parts.append(markdown_table(section.header, section.rows) if section.rows else "")
            picture = section.picture
            parts.append(f"![{section.title}]({picture.name})" if picture else "")
        return "\n\n".join(part for part in parts if part) + "\n"

    def html(self) -> str:
        """The report as a page that holds its pictures and asks for nothing from outside."""
        return render_template("document.html", **vars(self))

    def write(self, folder: Path, page: str) -> Path:
        """Write ``report.md`` and the page into a folder; return the path of the page."""
        write_text(folder / "report.md", self.markdown())
        write_text(folder / page, self.html())
        return folder / page


def render_template(template: str, **values: Any) -> Markup:
    """Fill in one of the templates beside this module; plain text in values is escaped."""
    return Markup(_environment().get_template(template).render(**values))


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("snella_seg.lab"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["embedded"] = _embedded
    environment.policies["json.dumps_kwargs"] = dict(separators=(",", ":"), allow_nan=False)
    return environment


def _embedded(path: Path) -> str:
    """A PNG as the address of an image that holds it."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown: the first column to the left, the others to the right."""
    lines = [list(map(str, row)) for row in (header, *rows)]
    lines.insert(1, ["---"] + ["---:"] * (len(lines[0]) - 1))
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in lines)
