"""Runs trainings one after another or side by side, each in a folder and a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from mmengine.config import Config

from ...configs import tool
from ...loading import write_text
from ..text import duration
from .plan import Run
from .results import RESULT, RunFailed, read_run

#: In a run's folder; the training writes what it makes of it, by the same name, one level up.
_CONFIG = "config/run_config.py"


def execute(
    runs: list[Run],
    config_of: Callable[[Run], Config],
    folder: Path,
    jobs: int = 1,
    say: Callable[[str], None] = print,
) -> dict[Run, dict]:
    """Train all runs, or find that they are trained.

    A run that was cut off goes on from its last checkpoint; a finished one is read.

    Args:
        runs: what to train.
        config_of: gives the config of a run.
        folder: gets a folder for each run.
        jobs: how many train side by side; they share the processor's cores.
        say: takes a line of progress.

    Returns:
        Run -> its results (:func:`snella_seg.lab.compare.results.read_run`), or
        ``{'error': text}``.

    Raises:
        ValueError: when a folder holds a run of another config.
    """
    configs = {run: config_of(run) for run in runs}
    for run, cfg in configs.items():
        _claim(folder / run.name, cfg)
    started, done, lock = time.monotonic(), 0, Lock()
    spent: list[float] = []

    def train(run: Run) -> dict:
        nonlocal done
        result, seconds = _train(folder / run.name, jobs)
        with lock:
            done += 1
            if seconds is not None:
                spent.append(seconds)
            left = (len(runs) - done) * sum(spent) / len(spent) / jobs if spent else 0
            outcome = result.get("error") or f"mIoU {result['mIoU']:.2f}"
            took = "was there" if seconds is None else duration(seconds)
            say(
                f"[{done}/{len(runs)}] {run}: {outcome} ({took})"
                + (f"; about {duration(left)} left" if left else "")
            )
        return result

    with ThreadPoolExecutor(jobs) as pool:
        try:
            results = dict(zip(runs, pool.map(train, runs), strict=True))
        except BaseException:  # an interrupt ends the runs in progress; begin no other
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    say(f"{len(runs)} runs, {duration(time.monotonic() - started)}")
    return results


def _claim(folder: Path, cfg: Config) -> None:
    """See that a folder is new or holds the run of this very config."""
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / _CONFIG, cfg.pretty_text
    if not path.is_file():
        write_text(path, text)
    elif path.read_text() != text:
        raise ValueError(
            f"{folder} holds a run of another config; give another --work-dir, or remove the folder"
        )


def _train(folder: Path, jobs: int) -> tuple[dict, float | None]:
    """Train what a folder's config says; return results and seconds, None where it was there."""
    if (folder / RESULT).is_file():
        return json.loads((folder / RESULT).read_text()), None
    started = time.monotonic()
    command = [sys.executable, tool("train.py"), folder / _CONFIG, "--work-dir", folder, "--resume"]
    with open(folder / "train.log", "ab") as log:
        ended = subprocess.run(
            list(map(str, command)), stdout=log, stderr=log, env=_environment(jobs)
        )
    seconds = time.monotonic() - started
    if ended.returncode != 0:
        lines = (folder / "train.log").read_text(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else "no output"
        return {"error": f"exit status {ended.returncode}: {reason}"[:300]}, seconds
    try:
        result = read_run(folder)
    except RunFailed as error:
        return {"error": str(error)}, seconds
    write_text(folder / RESULT, json.dumps(result, indent=1))
    return result, seconds


def _environment(jobs: int) -> dict[str, str]:
    environment = dict(os.environ)
    if jobs > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    return environment
