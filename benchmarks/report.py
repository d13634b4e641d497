"""Results as raw JSON and as Markdown tables, written anew after every table."""

import datetime
import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
from pathlib import Path

import torch

PACKAGES = {
    "torch": ("torch",),
    "mmcv": ("onedl-mmcv", "mmcv", "mmcv-lite"),
    "mmseg": ("onedl-mmsegmentation", "mmsegmentation"),
    "peft": ("peft",),
    "timm": ("timm",),
}
#: Key of a figure -> (heading, how it is written).
COLUMNS = {
    "value": ("value", "{}"),
    "label": ("", "{}"),
    "ms": ("time, ms (quartiles)", "time"),
    "ratio": ("time, reference = 1", "{:.2f}"),
    "over_lora": ("time, LoRA (peft) = 1", "{:.2f}"),
    "over_full": ("time, full = 1", "{:.2f}"),
    "over_frozen": ("time over frozen, %", "{:+.0f}"),
    "saved": ("saved for backward, MiB", "mib"),
    "held": ("held after forward, MiB", "mib"),
    "peak": ("peak of a step, MiB", "mib"),
    "resident": ("weights and AdamW state, MiB", "mib"),
    "trained": ("trained in the backbone", "{:,}"),
    "per_step": ("ms per step", "{:.3f}"),
    "share": ("share of the step, %", "{:.2f}"),
}
#: Variables that are part of a command where they are set.
SWITCHES = ("OMP_NUM_THREADS", "SNELLA_NATIVE", "SNELLA_ONEDNN")
MEMORY_NOTE = {
    "cpu": "peak and held: all allocations of one step, recorded by torch.profiler and replayed "
    "(oneDNN's scratch space and numpy's arrays are not seen)",
    "cuda": "peak and held: torch's caching allocator (max_memory_allocated, memory_allocated)",
}


def device_name(device: torch.device) -> str:
    """'cpu', or the short name of the GPU, for file names."""
    if device.type == "cpu":
        return "cpu"
    name = re.sub(r"nvidia|geforce|tesla", "", torch.cuda.get_device_name().lower())
    return re.sub(r"[^a-z0-9]+", "_", name.strip()).split("_pcie")[0].strip("_")


def environment(device: torch.device) -> dict[str, str]:
    """Hardware and versions, date and command."""
    hardware = f"{_cpu_model()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used"
    if device.type == "cuda":
        hardware = f"{torch.cuda.get_device_name()}; {hardware}"
    versions = [f"Python {platform.python_version()}"]
    for name, distributions in PACKAGES.items():
        versions.append(f"{name} {next(filter(None, map(_version, distributions)), 'missing')}")
    if device.type == "cuda":
        tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        versions.append(
            f"CUDA {torch.version.cuda}, TF32 in products {tf32[0]}, in cuDNN {tf32[1]}"
        )
    arguments = sys.argv[1:]
    if "--out" in arguments:  # a folder of this machine
        del arguments[arguments.index("--out") : arguments.index("--out") + 2]
    switches = [f"{name}={os.environ[name]}" for name in SWITCHES if name in os.environ]
    script = f"benchmarks/{Path(sys.argv[0]).name}"
    command = shlex.join([*switches, "python", script, *arguments])
    return dict(
        hardware=hardware,
        versions=", ".join(versions),
        date=datetime.date.today().isoformat(),
        command=command,
    )


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


class Report:
    """The tables of one file; those of earlier runs stay until they are measured again.

    Args:
        out: folder.
        stem: file name without its ending.
        title: heading.
        intro: what the reader has to know, as Markdown.
        device: measured on.
    """

    def __init__(self, out: Path, stem: str, title: str, intro: str, device: torch.device) -> None:
        self.out, self.stem, self.title, self.intro = out, stem, title, intro
        self.environment = environment(device)
        self.notes = f"Memory: {MEMORY_NOTE[device.type]}."
        self.path = out / f"{stem}.json"
        self.tables = json.loads(self.path.read_text())["tables"] if self.path.is_file() else []

    def image(self, section: str, name: str) -> Path:
        """Where the plot of a table belongs."""
        return self.out / f"{self.stem}_{slug(section)}_{slug(name)}.png"

    def add(self, section: str, name: str, columns: list[str], rows: list[dict], note="") -> None:
        """Add or replace a table, write everything, and print the table."""
        table = dict(section=section, name=name, columns=columns, note=note)
        table.update(run=self.environment, rows=rows)
        names = [(t["section"], t["name"]) for t in self.tables]
        if (section, name) in names:
            self.tables[names.index((section, name))] = table
        else:
            self.tables.append(table)
        self.write()
        print(f"\n{name}\n" + table_text(columns, rows) + "\n", flush=True)

    def write(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        content = json.dumps(dict(title=self.title, tables=self.tables), indent=1)
        self.path.write_text(content + "\n")
        (self.out / f"{self.stem}.md").write_text(self.markdown())

    def markdown(self) -> str:
        parts = [f"# {self.title}", self.intro.strip(), self.notes]
        sections = list(dict.fromkeys(t["section"] for t in self.tables))
        shown = None
        for section in sections:
            parts.append(f"## {section}")
            for table in (t for t in self.tables if t["section"] == section):
                parts.append(f"### {table['name']}")
                if table["run"] != shown:
                    shown = table["run"]
                    parts.append(
                        f"{shown['hardware']}. {shown['versions']}. {shown['date']}, "
                        f"`{shown['command']}`"
                    )
                if table["note"]:
                    parts.append(table["note"])
                parts.append(table_text(table["columns"], table["rows"]))
                image = self.image(section, table["name"])
                if image.is_file():
                    parts.append(f"![{table['name']}]({image.name})")
        return "\n\n".join(parts) + "\n"


def slug(text: str) -> str:
    """A heading as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def table_text(columns: list[str], rows: list[dict]) -> str:
    """A Markdown table of the columns that any row has; a row that failed says how."""
    columns = [c for c in columns if c in ("label", "ms") or any(c in row for row in rows)]
    lines = [[COLUMNS[c][0] for c in columns], ["---"] * len(columns)]
    for row in rows:
        cells = [_cell(c, row) for c in columns]
        if "error" in row:
            cells[columns.index("label") + 1] = f"fails: {row['error']}"
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(column: str, row: dict) -> str:
    value, form = row.get(column), COLUMNS[column][1]
    if value is None:
        return "–"
    if form == "mib":
        return f"{value / 2**20:.1f}"
    if form == "time":
        digits = 3 if value < 1 else 2 if value < 100 else 0
        return f"{value:.{digits}f} ({row['ms_low']:.{digits}f}-{row['ms_high']:.{digits}f})"
    return form.format(value)
