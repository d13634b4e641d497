"""The file in a work dir that keeps a line of JSON for every allocation."""

import json
import math
from pathlib import Path

HISTORY = "sparsity_history.jsonl"


def start_history(work_dir: Path, iteration: int) -> None:
    """Begin the history anew, keeping an old one aside, or cut it at the point of resuming."""
    path = work_dir / HISTORY
    if not path.exists():
        return
    if iteration == 0:
        path.replace(path.with_suffix(".previous.jsonl"))
        return
    kept = [line for line in path.read_text().splitlines() if _iteration_of(line) <= iteration]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(line + "\n" for line in kept))
    partial.replace(path)


def append_line(work_dir: Path, line: dict) -> None:
    """Add the record of an allocation."""
    with open(work_dir / HISTORY, "a") as history:
        history.write(json.dumps(line) + "\n")


def last_line(work_dir: Path) -> dict | None:
    """The record of the last allocation, or None where there is none."""
    path = work_dir / HISTORY
    lines = path.read_text().splitlines() if path.is_file() else []
    whole = [line for line in lines if _iteration_of(line) < math.inf]
    return json.loads(whole[-1]) if whole else None


def _iteration_of(line: str) -> float:
    try:
        return json.loads(line)["iter"]
    except json.JSONDecodeError:  # cut off when the run was killed
        return math.inf
