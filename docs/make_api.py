"""Write docs/api.md from docstrings: ``python docs/make_api.py``; ``--check`` only compares.

With ``--check`` the exit status is 1 when the file is not what the docstrings say.
"""

import importlib
import inspect
import re
import sys
import textwrap
from pathlib import Path

PAGE = Path(__file__).parent / "api.md"
COMMAND = "python docs/make_api.py"

CONFIG_CLASSES = (
    "snella_seg.models.SnellaBackbone",
    "snella_seg.hooks.SparsityAllocationHook",
    "snella_seg.hooks.SnellaCheckpointHook",
    "snella_seg.optim.SnellaOptimWrapperConstructor",
    "snella_seg.models.class_iou.ClassIoUMetric",
)
MODULES = (
    "snella_seg.functional",
    "snella_seg.layers",
    "snella_seg.inject",
    "snella_seg.inject.methods",
    "snella_seg.artifacts",
    "snella_seg.cli.runtime",
)
_RECEIVERS = ("self", "cls")
SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises):$")
ENTRY = re.compile(r"(\*{0,2}[A-Za-z_][\w*, ]*): (.*)")


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")


def public_names(module) -> list[str]:
    """What a module offers: its ``__all__``, or the functions and classes written in it."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def groups() -> dict[str, list[tuple[str, object]]]:
    """Heading -> names and objects, in the order of the page."""
    found = {"Classes for configs": []}
    for path in CONFIG_CLASSES:
        module, _, name = path.rpartition(".")
        value = getattr(importlib.import_module(module), name)
        found["Classes for configs"].append((name, value))
    for path in MODULES:
        module = importlib.import_module(path)
        pairs = [(name, getattr(module, name)) for name in public_names(module)]
        found[path] = [(n, v) for n, v in pairs if inspect.isclass(v) or inspect.isroutine(v)]
    return found


def signature(name: str, value) -> str:
    """How to call something, a parameter per line where one line is too long."""
    if inspect.isclass(value) and "__init__" not in vars(value):
        return f"{name}(...)"
    found = inspect.signature(value)
    parts = [_parameter(p) for p in found.parameters.values() if p.name not in _RECEIVERS]
    kinds = [p.kind for p in found.parameters.values() if p.name not in _RECEIVERS]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        parts.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    back = "" if inspect.isclass(value) else _type(found.return_annotation)
    end = f") -> {back}" if back else ")"
    line = f"{name}({', '.join(parts)}{end}"
    if len(line) <= 100:
        return line
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), end])


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    text = stars.get(parameter.kind, "") + parameter.name
    kind = _type(parameter.annotation)
    text += f": {kind}" if kind else ""
    if parameter.default is inspect.Parameter.empty:
        return text
    default = parameter.default
    shown = default.__name__ if inspect.isroutine(default) else repr(default)
    return text + (f" = {shown}" if kind else f"={shown}")


def _type(annotation) -> str:
    """A type as it is written in the code, without the modules that its names are from."""
    if annotation is inspect.Signature.empty or annotation is None:
        return ""
    plain = inspect.isclass(annotation) and not hasattr(annotation, "__args__")
    text = annotation.__qualname__ if plain else str(annotation)
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", text).replace("NoneType", "None")


def docstring(value) -> str:
    """A docstring of our style as Markdown; sections become lists, literal blocks are fenced."""
    out: list[str] = []
    section, fenced = None, False
    for line in (inspect.getdoc(value) or "").splitlines():
        if fenced and line[:1] not in ("", " "):
            out += ["```", ""]
            fenced = False
        if fenced:
            out += [line[4:]] if line else []
        elif heading := SECTION.match(line):
            section = heading[1]
            out += [f"**{section}**", ""]
        elif section and line.startswith("    "):
            item = ENTRY.match(line.strip()) if line[4] != " " else None
            out.append(f"- `{item[1]}`: {item[2]}" if item else f"{_indent(out)}{line.strip()}")
        elif line.endswith("::"):
            out += [line[:-1], "", "```python"]
            fenced = True
        else:
            section = section if not line else None
            out.append(line)
    return "\n".join([*out, "```"] if fenced else out)


def _indent(lines: list[str]) -> str:
    """How a line that goes on is indented: below the text of a list's entry."""
    return "  " if lines and lines[-1].startswith(("- ", "  ")) else ""


def linked(text: str, anchors: dict[str, str]) -> str:
    """Turn roles (``:class:`a.b.C```) into links where the page has them; ``x`` becomes `x`."""

    def role(match: re.Match) -> str:
        path = match[2]
        name = path if match[1] == "mod" else path.rpartition(".")[2]
        anchor = anchors.get(name)
        return f"[`{name}`](#{anchor})" if anchor else f"`{path}`"

    text = re.sub(r":([a-z]+):`~?([\w.]+)`", role, text)
    return re.sub(r"(?<!`)``([^`]+)``(?!`)", r"`\1`", text)


def members(value) -> list[tuple[str, object]]:
    """Public methods and properties that a class has itself and describes."""
    if not inspect.isclass(value):
        return []
    return [
        (name, member)
        for name, member in vars(value).items()
        if not name.startswith("_")
        and (inspect.isfunction(member) or isinstance(member, (property, classmethod)))
        and (member.fget if isinstance(member, property) else member).__doc__
    ]


def entry(name: str, value, anchors: dict[str, str]) -> list[str]:
    """A name's heading, signature, description and members."""
    lines = [f"### `{name}`", "", "```python", signature(name, value), "```", ""]
    lines += [linked(docstring(value), anchors), ""]
    for member, what in members(value):
        call = getattr(what, "fget", None) or getattr(what, "__func__", what)
        lines += [f"#### `{name}.{member}`", ""]
        if not isinstance(what, property):
            lines += ["```python", signature(f"{name}.{member}", call), "```", ""]
        lines += [linked(docstring(call), anchors), ""]
    return lines


def methods_table() -> list[str]:
    """What ``model.backbone.method`` may be."""
    from snella_seg.inject.methods import METHODS

    rows = [(f"`{name}`", method.label, method.about) for name, method in METHODS.items()]
    cells = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return ["| `method` | | |", "|---|---|---|", *(f"| {row} |" for row in cells), ""]


def render() -> str:
    """The whole page."""
    importlib.import_module("snella_seg.register")
    found = groups()
    anchors = {name: slug(name) for pairs in found.values() for name, _ in pairs}
    anchors |= {path: slug(path) for path in MODULES} | {
        "METHODS": slug("snella_seg.inject.methods")
    }
    whole_words = dict(break_long_words=False, break_on_hyphens=False)
    lines = ["# API", "", f"Made of the docstrings by `{COMMAND}`; do not edit it by hand.", ""]
    for heading, pairs in found.items():
        names = ", ".join(f"[`{name}`](#{slug(name)})" for name, _ in pairs)
        line = f"- [{heading}](#{slug(heading)}): {names}"
        lines.append(textwrap.fill(line, 118, subsequent_indent="  ", **whole_words))
    lines.append("")
    for heading, pairs in found.items():
        lines += [f"## {heading}", ""]
        if heading in MODULES:
            lines += [linked(docstring(importlib.import_module(heading)), anchors), ""]
        if heading == "snella_seg.inject.methods":
            lines += methods_table()
        for name, value in pairs:
            lines += entry(name, value, anchors)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def main() -> int:
    text = render()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text)
        return 0
    if PAGE.is_file() and PAGE.read_text() == text:
        return 0
    print(f"{PAGE.name} is stale: run {COMMAND}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
