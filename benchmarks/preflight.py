"""How well tools/preflight.py foretells time, memory and disk: preflight, train, compare.

python benchmarks/preflight.py CONFIG [CONFIG ...] --cfg-options train_cfg.max_iters=138
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from snella_seg.configs import tool
from snella_seg.lab.compare.study_report import environment
from snella_seg.lab.document import markdown_table
from snella_seg.lab.preflight.forecast import size


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--methods", nargs="+", default=["snella"], help="methods of each config")
    parser.add_argument("--cfg-options", nargs="+", default=[], help="for both of the tools")
    parser.add_argument("--out", default="docs/benchmarks", help="where preflight.md goes")
    return parser.parse_args()


def call(name: str, *args) -> tuple[int, int]:
    """Run one of our tools; return its exit status and its own peak of memory in bytes."""
    command = [sys.executable, tool(name), *map(str, args)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024


def compare(config: str, method: str, options: list[str], folder: Path) -> list[str]:
    """One row: foretold and measured, and their ratios."""
    options = ["--cfg-options", f"model.backbone.method={method}", *options]
    found = folder / "found.json"
    status, _ = call("preflight.py", config, "--json", found, *options)
    if status not in (0, 2):  # 2: it sees, for one, that a shortened run ends before its schedule
        raise SystemExit(f"preflight of {config} ended with exit status {status}")
    told = json.loads(found.read_text())
    status, peak = call("train.py", config, "--work-dir", folder / "run", *options)
    if status:
        raise SystemExit(f"training of {config} ended with exit status {status}")
    log = next((folder / "run").glob("*/vis_data/scalars.json"))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    seconds = statistics.fmean(line["time"] for line in lines if "loss" in line)
    written = max(path.stat().st_size for path in (folder / "run").glob("iter_*.pth"))
    cells = [f"{Path(config).stem}, {method}"]
    for predicted, measured, form in (
        (told["seconds_per_iteration"], seconds, lambda s: f"{s:.3f} s"),
        (told["peak_bytes"], peak, size),
        (told["checkpoint_bytes"], written, size),
    ):
        cells += [form(predicted), form(measured), f"{predicted / measured:.2f}"]
    print(" | ".join(cells), flush=True)
    return cells


def main() -> None:
    args = parse_args()
    rows = []
    for config in args.configs:
        for method in args.methods:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(compare(config, method, args.cfg_options, Path(folder)))
    header = ["training"]
    for what in ("time per iteration", "peak memory", "checkpoint"):
        header += [f"{what}, foretold", "measured", "ratio"]
    facts = "\n".join(f"- {name}: {text}" for name, text in environment().items())
    command = " ".join(["python benchmarks/preflight.py", *sys.argv[1:]])
    text = (
        f"# What preflight foretells, and what happens\n\n`{command}`\n\n{facts}\n\n"
        "Time is the mean over the whole run, of which preflight sees some iterations at the first "
        "and at the last budget. Memory is the peak of the training process.\n\n"
    )
    path = Path(args.out) / "preflight.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + markdown_table(header, rows) + "\n")
    print(path)


if __name__ == "__main__":
    main()
