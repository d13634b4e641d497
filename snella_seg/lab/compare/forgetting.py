"""What adapting costs on the task that the backbone came from: its own head, put on it again."""

import copy
import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.runner import CheckpointLoader, Runner

from ...configs import load_config, type_name
from ...loading import check_checkpoint, latest_checkpoint, write_text
from ...models.inference import build_segmentor
from .plan import Run, run_config
from .results import RESULT
from .variant import Variant

_BACKBONE = "backbone."


def source_config(cfg: Config) -> Config | None:
    """The config of the task that a config's backbone was trained on, or None if it names none.

    ``source = dict(checkpoint=..., config=..., options=...)`` names it: the segmentor's weights;
    its config, without one that of the comparison with nothing adapted; and what differs in it, as
    ``dict(val_dataloader=dict(dataset=dict(data_root=...)))``. Its validation set scores it.

    Raises:
        ValueError: on other keys, or without a checkpoint.
        FileNotFoundError: when the config or the checkpoint is not there.
    """
    given = cfg.get("source")
    if not given:
        return None
    known = {"checkpoint", "config", "options"}
    if not isinstance(given, dict) or set(given) - known or not given.get("checkpoint"):
        raise ValueError(
            "source must be dict(checkpoint=FILE), and may have config and options, got "
            f"{dict(given) if isinstance(given, dict) else given!r}"
        )
    if given.get("config"):
        source = load_config(given["config"])
    else:
        source = copy.deepcopy(cfg)
        source.pop("source")
    if type_name(source.model.backbone) == "SnellaBackbone":
        Variant.parse("frozen").apply(source)
    source.merge_from_dict(given.get("options") or {})
    check_checkpoint(given["checkpoint"], "source.checkpoint")
    source.load_from = given["checkpoint"]
    return source


def score_source(source: Config, backbone: dict | None = None, checkpoint: str = "") -> float:
    """mIoU of the source's head on the source's validation set, in percent.

    Args:
        source: of :func:`source_config`.
        backbone: config of an adapted backbone to put under the head; None for the source model.
        checkpoint: the segmentor that the adapted backbone is taken from.

    Raises:
        CheckpointError: when a checkpoint does not fit.
    """
    if backbone is None:
        return _evaluate(source, source.load_from)
    adapted = copy.deepcopy(source)
    adapted.model.backbone = copy.deepcopy(backbone)
    head, body = (_state(path) for path in (source.load_from, checkpoint))
    state = {name: value for name, value in head.items() if not name.startswith(_BACKBONE)}
    state.update({name: value for name, value in body.items() if name.startswith(_BACKBONE)})
    with tempfile.TemporaryDirectory() as folder:
        joined = str(Path(folder) / "joined.pth")
        torch.save({"state_dict": state}, joined)
        return _evaluate(adapted, joined)


def add_forgetting(
    results: dict[Run, dict],
    cfg: Config,
    source: Config,
    before: float,
    folder: Path,
    say: Callable[[str], None] = print,
) -> None:
    """Add ``source_mIoU`` and ``forgetting`` to the results of runs, in points of mIoU.

    Forgetting is what the source model scores on its own task (``before``), less what its head
    scores there on the adapted backbone. Scores are kept in ``result.json`` of the runs.
    """
    key = hashlib.sha1(source.pretty_text.encode()).hexdigest()
    for run, result in results.items():
        if "error" in result:
            continue
        if result.get("source_key") != key:
            backbone = run_config(cfg, run).model.backbone
            checkpoint = latest_checkpoint(str(folder / run.name))
            after = score_source(source, backbone, checkpoint)
            result.update(source_key=key, source_mIoU=after)
            write_text(folder / run.name / RESULT, json.dumps(result, indent=1))
        result["forgetting"] = round(before - result["source_mIoU"], 2)
        say(f"{run}: {result['source_mIoU']:.2f} on the source task")


def _state(checkpoint: str) -> dict:
    content = CheckpointLoader.load_checkpoint(checkpoint, map_location="cpu")
    return content.get("state_dict", content)


@torch.no_grad()
def _evaluate(cfg: Config, checkpoint: str) -> float:
    """mIoU of a config's segmentor on its validation set, in percent."""
    MMLogger.get_instance("source", log_level="ERROR")  # the metric prints a table to the last one
    model = build_segmentor(cfg, checkpoint)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    loader = Runner.build_dataloader(copy.deepcopy(cfg.val_dataloader))
    evaluator = Evaluator(copy.deepcopy(cfg.val_evaluator))
    evaluator.dataset_meta = loader.dataset.metainfo
    for batch in loader:
        evaluator.process(data_samples=model.val_step(batch), data_batch=batch)
    return float(evaluator.evaluate(len(loader.dataset))["mIoU"])
