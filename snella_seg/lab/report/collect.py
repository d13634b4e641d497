"""Gathers what a work dir holds for a report, and says what is missing."""

from pathlib import Path

import numpy as np
from mmengine.config import Config

from ...budget import HISTORY
from ...configs import load_config
from ...loading import CheckpointError, latest_checkpoint
from ...models import build_segmentor
from .deltas import Deltas, measure_deltas
from .facts import Findings
from .layout import lay_out
from .read_history import History, read_history
from .schedule import Schedule, find_hook, find_method, find_schedule


def find_config(work_dir: Path, config: str | Path | None) -> Config | None:
    """The config that was given, or else the newest that mmengine dumped into the work dir.

    None where there is none. Raises as :func:`snella_seg.configs.load_config`.
    """
    if config is None:
        dumped = sorted(work_dir.glob("*.py"), key=lambda path: path.stat().st_mtime)
        config = dumped[-1] if dumped else None
    return None if config is None else load_config(config)


def refuse_without_history(work_dir: Path, cfg: Config | None) -> None:
    """Say plainly that a run cannot have a history, where its config tells so.

    Raises:
        FileNotFoundError: when it has none, since its config allocates nothing.
    """
    if cfg is None or (work_dir / HISTORY).is_file():
        return
    method = find_method(cfg)
    if method.allocation is None:
        raise FileNotFoundError(
            f"nothing to report of {work_dir}: its method, {method.label}, allocates no budget, "
            f"so there is no {HISTORY}"
        )
    if find_hook(cfg) is None:
        raise FileNotFoundError(
            f"nothing to report of {work_dir}: its config has no SparsityAllocationHook among its "
            f"custom_hooks, so there is no {HISTORY}"
        )


def collect(work_dir: Path, cfg: Config | None, checkpoint: str | Path | None) -> Findings:
    """Read all that there is; what is missing becomes a note.

    Raises:
        FileNotFoundError: when there is no history, or no such checkpoint.
        ValueError: when the history is unreadable, or the checkpoint is of other matrices.
        CheckpointError: when the checkpoint that was given does not fit the config.
    """
    history, notes, about = read_history(work_dir), [], []
    schedule = deltas = None
    if history.cut_off:
        notes.append("The last line of the history was cut off and is left out.")
    if cfg is None:
        notes.append(
            "No config in the work dir: schedule and final deltas are not known. Give --config."
        )
    else:
        about.append(("method", find_method(cfg).label))
        schedule = _schedule(cfg, history, notes)
        found = _checkpoint(work_dir, checkpoint, notes)
        deltas = found and _deltas(cfg, found, history, checkpoint is not None, notes)
    if schedule is not None:
        about.append(("allocation", schedule.mode))
        about.append(("target sparsity", f"{schedule.target_sparsity:g}"))
        if wrong := np.count_nonzero(schedule.off(history)):
            budgets = "1 budget is" if wrong == 1 else f"{wrong} budgets are"
            notes.append(f"{budgets} off the schedule of the config.")
    if deltas is not None:
        when = _when(deltas, history)
        about.append(("deltas of", f"{Path(found).name}, {when}"))
        if (deltas.nonzero != history.nonzero[-1]).any():
            notes.append(
                f"The checkpoint is not of the last allocation: its deltas have the {when}."
            )
    return Findings(
        work_dir.resolve().name,
        history,
        lay_out(history.names),
        schedule,
        deltas,
        tuple(about),
        tuple(notes),
    )


def _schedule(cfg: Config, history: History, notes: list[str]) -> Schedule | None:
    try:
        return find_schedule(cfg, history)
    except (ValueError, TypeError) as error:
        notes.append(f"The schedule is not known: {error}.")
        return None


def _checkpoint(work_dir: Path, given: str | Path | None, notes: list[str]) -> str | None:
    """The checkpoint to take deltas from, if there is one."""
    if given is not None:
        return str(given)
    try:
        found = latest_checkpoint(str(work_dir))
    except CheckpointError:
        found = None
    if found is None:
        notes.append("No whole checkpoint in the work dir: the final deltas are not known.")
    return found


def _deltas(
    cfg: Config, checkpoint: str, history: History, given: bool, notes: list[str]
) -> Deltas | None:
    """Deltas of a checkpoint, in the order of the history.

    A checkpoint that was not asked for and cannot be used becomes a note.
    """
    try:
        deltas = measure_deltas(build_segmentor(cfg, checkpoint))
    except (FileNotFoundError, CheckpointError, ValueError) as error:
        if given:
            raise
        notes.append(f"{Path(checkpoint).name} does not tell the final deltas: {error}.")
        return None
    if deltas.names != history.names:
        odd = sorted(set(deltas.names) ^ set(history.names))[:3]
        raise ValueError(
            f"{checkpoint} and the history are not of the same matrices (they differ in "
            f"{', '.join(odd) or 'their order'}); give the run's own --config and --checkpoint"
        )
    return deltas


def _when(deltas: Deltas, history: History) -> str:
    """Which allocation the sparsities of a checkpoint are of."""
    same = np.flatnonzero((history.nonzero == deltas.nonzero).all(1))
    if not len(same):
        return "sparsities of no allocation in the history"
    return f"sparsities of epoch {history.epochs[same[-1]]}"
