"""Runs trainings one after another or side by side, each in a folder and a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from threading import Lock
from typing import IO

from mmengine.config import Config

from ...configs import tool
from ...loading import make_folder, write_text
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
        jobs: how many train side by side, each on cores of its own.
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
    places: Queue[set[int]] = Queue()
    for cores in share_cores(jobs):
        places.put(cores)

    def train(run: Run) -> dict:
        nonlocal done
        cores = places.get()
        try:
            result, seconds = _train(folder / run.name, cores)
        finally:
            places.put(cores)
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
    make_folder(folder)
    path, text = folder / _CONFIG, cfg.pretty_text
    if not path.is_file():
        write_text(path, text)
    elif path.read_text() != text:
        raise ValueError(
            f"{folder} holds a run of another config; give another --work-dir, or remove the folder"
        )


def share_cores(jobs: int) -> list[set[int]]:
    """Which cores each of several jobs may use: their own, or all where cores are too few."""
    if not hasattr(os, "sched_getaffinity"):  # not Linux
        return [set()] * jobs
    cores = sorted(os.sched_getaffinity(0))
    each = len(cores) // jobs
    if not each:
        return [set(cores)] * jobs
    return [set(cores[i * each : (i + 1) * each]) for i in range(jobs)]


def _train(folder: Path, cores: set[int]) -> tuple[dict, float | None]:
    """Train what a folder's config says; return results and seconds, None where it was there."""
    if (folder / RESULT).is_file():
        return json.loads((folder / RESULT).read_text()), None
    started = time.monotonic()
    command = [sys.executable, tool("train.py"), folder / _CONFIG, "--work-dir", folder, "--resume"]
    resumed = any(folder.glob("*.pth"))
    with open(folder / "train.log", "ab") as log:
        code, cpu_seconds = _run(list(map(str, command)), log, cores)
    seconds = time.monotonic() - started
    if code != 0:
        lines = (folder / "train.log").read_text(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else "no output"
        return {"error": f"exit status {code}: {reason}"[:300]}, seconds
    try:
        result = read_run(folder)
    except RunFailed as error:
        return {"error": str(error)}, seconds
    result["cpu_seconds"] = None if resumed else cpu_seconds
    write_text(folder / RESULT, json.dumps(result, indent=1))
    return result, seconds


def _run(command: list[str], log: IO[bytes], cores: set[int]) -> tuple[int, float | None]:
    """Run a command on some cores; return its exit status and its CPU time, where that is known."""
    with subprocess.Popen(command, stdout=log, stderr=log, env=_environment(len(cores))) as process:
        if cores:
            os.sched_setaffinity(process.pid, cores)
        if not hasattr(os, "wait4"):
            return process.wait(), None
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, used.ru_utime + used.ru_stime


def _environment(cores: int) -> dict[str, str]:
    return {**({"OMP_NUM_THREADS": str(cores)} if cores else {}), **os.environ}
