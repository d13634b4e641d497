"""Reads what a finished training left in its folder."""

import json
import math
from pathlib import Path

from ...budget import last_line
from ...loading import latest_checkpoint

RESULT = "result.json"


class RunFailed(RuntimeError):
    """A training that left no result."""


def read_run(folder: Path) -> dict:
    """The results of the training in a work dir.

    Returns:
        ``mIoU`` of the last validation in percent; ``classes``, IoU by class in percent; ``NLL``
        and ``ECE`` of it (:class:`snella_seg.models.CalibrationMetric`) or None;
        ``validations``, pairs of step and mIoU; ``losses``, pairs of iteration and loss;
        ``seconds``, the median of the logged seconds per iteration; ``checkpoint``, its size in
        bytes; ``allocation``, the last line of ``sparsity_history.jsonl``, or None.

    Raises:
        RunFailed: when it has no validation or no checkpoint, or its loss is not finite.
    """
    lines = _scalars(folder)
    validations = [line for line in lines if "mIoU" in line]
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    if not validations:
        raise RunFailed(f"{folder} holds no validation")
    if losses and not math.isfinite(losses[-1][1]):
        raise RunFailed(f"the loss became {losses[-1][1]}: lower the learning rate")
    checkpoint = latest_checkpoint(str(folder))
    if checkpoint is None:
        raise RunFailed(f"{folder} holds no checkpoint")
    times = sorted(line["time"] for line in lines if "loss" in line and "time" in line)
    last = validations[-1]
    return {
        "mIoU": last["mIoU"],
        "classes": {k.removeprefix("IoU/"): v for k, v in last.items() if k.startswith("IoU/")},
        "NLL": last.get("NLL"),
        "ECE": last.get("ECE"),
        "validations": [(line["step"], line["mIoU"]) for line in validations],
        "losses": losses,
        "seconds": times[len(times) // 2] if times else None,
        "checkpoint": Path(checkpoint).stat().st_size,
        "allocation": last_line(folder),
    }


def _scalars(folder: Path) -> list[dict]:
    """The lines that a run logged, of all its sittings; later ones go before earlier ones."""
    by_step: dict[tuple, dict] = {}
    for path in sorted(folder.glob("*/vis_data/scalars.json")):
        for text in path.read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:  # cut off when the run was killed
                continue
            kind = "mIoU" in line, "loss" in line
            if "step" in line and any(kind):
                by_step[(*kind, line["step"])] = line
    return [by_step[key] for key in sorted(by_step, key=lambda key: key[-1])]
