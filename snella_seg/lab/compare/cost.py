"""Time and memory of each method, measured in turn on one machine."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from mmengine.config import Config

from ...configs import tool
from ...loading import write_text

#: Figures that a preflight measures, of which the median over rounds is taken.
MEASURED = (
    "seconds_per_iteration",
    "seconds_at_start",
    "seconds_at_end",
    "seconds_per_validation_image",
    "peak_bytes",
    "gpu_peak_bytes",
    "checkpoint_bytes",
)
COUNTED = ("learnable", "learnable_heads", "weights", "nonzero", "nonzero_end")


def measure_costs(
    configs: dict[str, Config], folder: Path, rounds: int, say: Callable[[str], None] = print
) -> dict[str, dict]:
    """Run a preflight of every method, ``rounds`` times in turn, each in a process of its own.

    What else runs on the machine meets all methods alike. Rounds that were measured are read.

    Args:
        configs: method -> config of its training.
        folder: where the figures of each preflight are kept.
        rounds: how often.
        say: takes lines of progress.

    Returns:
        Method -> medians of :data:`MEASURED` and the numbers of :data:`COUNTED`; or
        ``{'error': text}``.
    """
    found: dict[str, list[dict]] = {method: [] for method in configs}
    errors: dict[str, str] = {}
    for method, cfg in configs.items():
        _forget_others(folder, method, cfg.pretty_text)
    for number in range(rounds):
        for method, cfg in configs.items():
            if method in errors:
                continue
            path = folder / f"{_file_name(method)}-{number}.json"
            if not path.is_file():
                say(f"measuring {method}, round {number + 1} of {rounds}")
                errors.update(_preflight(method, cfg, path))
            if path.is_file():
                found[method].append(json.loads(path.read_text()))
    return {
        method: {"error": errors[method]} if method in errors else _medians(reports)
        for method, reports in found.items()
    }


def _preflight(method: str, cfg: Config, path: Path) -> dict[str, str]:
    """Write the figures of one method to ``path``; return its error, if there is one."""
    config = _config_file(path.parent, method)
    write_text(config, cfg.pretty_text)
    command = [sys.executable, tool("preflight.py"), str(config), "--json", str(path)]
    ended = subprocess.run(command, capture_output=True, text=True)
    if path.is_file():
        return {}
    lines = (ended.stderr or ended.stdout).strip().splitlines()
    return {method: (lines[-1] if lines else f"exit status {ended.returncode}")[:300]}


def _config_file(folder: Path, method: str) -> Path:
    return folder / f"{_file_name(method)}_config.py"


def _forget_others(folder: Path, method: str, text: str) -> None:
    """Remove figures that were measured with another config."""
    config = _config_file(folder, method)
    if config.is_file() and config.read_text() != text:
        for path in folder.glob(f"{_file_name(method)}-*.json"):
            path.unlink()


def _file_name(method: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in method).replace(".", "p")


def _medians(reports: list[dict]) -> dict:
    medians: dict = {name: reports[0][name] for name in COUNTED} if reports else {}
    for name in MEASURED:
        values = [report[name] for report in reports if report[name] is not None]
        medians[name] = statistics.median(values) if values else None
    return medians
