"""What the demo needs before its main job: scenes, a source model, a frozen reference."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from ...configs import own
from .dataset import VERSION, is_written, write_dataset

RESULTS = "results.json"
#: The parts of a config that decide what a run ends with.
_DECISIVE = (
    "model",
    "optim_wrapper",
    "param_scheduler",
    "train_cfg",
    "train_dataloader",
    "val_dataloader",
    "randomness",
)


def prepare(cfg: Config) -> None:
    """Make what is not there yet, and say so; a later run finds it and is quick.

    Writes into the folder two above ``cfg.train_dataloader.dataset.data_root``: scenes of both
    domains, ``source.pth`` (a segmentor trained fully on the source domain), the predictions of a
    head on its frozen backbone for the target domain (``frozen_predictions``), ``results.json``.
    The frozen reference is the config itself, whatever was overridden in it, with nothing adapted.

    Args:
        cfg: the demo's config.

    Raises:
        ValueError: when several processes are to train and something is not there yet.
    """
    root = Path(cfg.train_dataloader.dataset.data_root).parents[1]
    source = _quiet(Config.fromfile(own("_base_/demo_source.py")[0]), "source", root)
    frozen = _quiet(Config(cfg.to_dict()), "frozen", root)
    frozen.model.backbone.targets = []
    if "method" in frozen.model.backbone:  # of a demo by another method
        frozen.model.backbone.method = "snella"
    frozen.custom_hooks = []
    source_key = _key(str(VERSION), source)
    key = _key(source_key, frozen)
    results = results_of(root)
    if is_written(root / "scenes") and results.get("key") == key:
        return
    if cfg.get("launcher", "none") != "none":
        raise ValueError("prepare the demo first: run it once in a single process, no --launcher")
    _make_scenes(root)
    if results.get("source_key") != source_key:
        results = _train_source(source, frozen.val_dataloader, root)
        results["source_key"] = source_key
        _write(root, results)
    _say(
        f"mIoU {results['source_by_day']:.2f} by day, {results['source_by_night']:.2f} by night; "
        "training a head for the night on its frozen backbone, "
        f"{frozen.train_cfg.max_iters} iterations"
    )
    frozen.val_evaluator.output_dir = str(root / "frozen_predictions")
    results.update(frozen=_train(frozen), key=key)
    _write(root, results)
    _say(f"mIoU {results['frozen']:.2f} with the frozen backbone; now SNELLA")


def prepare_source(cfg: Config) -> None:
    """Make the scenes and the backbone of a ground that goes from day to night, if not there yet.

    Trains the config's own model, stock and whole, on the day scenes, and writes it where
    ``cfg.model.backbone.init_cfg`` reads it. Its rate falls with the width, 0.1 / width.

    Args:
        cfg: a config of ``configs/grounds/scenes_*.py``.
    """
    checkpoint = Path(cfg.model.backbone.init_cfg.checkpoint)
    root = checkpoint.parent
    _make_scenes(root)
    if checkpoint.is_file():
        return
    source = _quiet(Config(cfg.to_dict()), checkpoint.stem, root)
    source.pop("prepare")
    source.model.backbone = source.model.backbone.backbone
    source.custom_hooks = []
    source.optim_wrapper.paramwise_cfg.backbone_lr = 0.1 / source.model.backbone.embed_dims
    for loader in (source.train_dataloader, source.val_dataloader):
        loader.dataset.data_root = str(root / "scenes" / "source")
    _say(f"training {checkpoint.name} on the day scenes, {source.train_cfg.max_iters} iterations")
    _say(f"mIoU {_train(source, checkpoint):.2f} by day")


def _make_scenes(root: Path) -> None:
    if write_dataset(root / "scenes"):
        _say(f"generated street scenes by day and by night in {root / 'scenes'}")


def _train_source(source: Config, night: dict, root: Path) -> dict:
    """Train the source model; return its mIoU in its own domain and, as it is, in the other."""
    _say(f"training a small ViT on the day scenes, {source.train_cfg.max_iters} iterations")
    by_day = _train(source, root / "source.pth")
    source.update(load_from=str(root / "source.pth"), val_dataloader=night)
    return dict(source_by_day=by_day, source_by_night=_evaluate(source))


def _write(root: Path, results: dict) -> None:
    partial = root / f"{RESULTS}.partial"
    partial.write_text(json.dumps(results, indent=1))
    partial.replace(root / RESULTS)


def results_of(root: Path) -> dict:
    """What was prepared in a folder, and its scores; empty where nothing was."""
    path = root / RESULTS
    return json.loads(path.read_text()) if path.is_file() else {}


def _say(what: str) -> None:
    print(f"demo: {what}", flush=True)


def _key(before: str, cfg: Config) -> str:
    """What a prepared result depends on, as a short hash."""
    parts = {part: cfg.to_dict().get(part) for part in _DECISIVE}
    text = before + json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha1(text.encode()).hexdigest()[:16]


def _quiet(cfg: Config, name: str, root: Path) -> Config:
    """Let a preparatory run keep to itself: own name, own folder, no log, nothing loaded."""
    cfg.update(
        launcher="none",
        work_dir=str(root / "runs" / name),
        experiment_name=f"demo_{name}",
        log_level="ERROR",
        load_from=None,
        resume=False,
    )
    return cfg


def _train(cfg: Config, checkpoint: Path | None = None) -> float:
    """Train, keep the last checkpoint if asked to, and return the mIoU of the last validation."""
    runner = _runner(cfg)
    runner.train()
    if checkpoint is not None:
        last = Path(cfg.work_dir) / f"iter_{cfg.train_cfg.max_iters}.pth"
        partial = checkpoint.with_suffix(".partial")
        shutil.copyfile(last, partial)
        os.replace(partial, checkpoint)
    shutil.rmtree(cfg.work_dir, ignore_errors=True)
    return float(runner.message_hub.get_scalar("val/mIoU").current())


def _evaluate(cfg: Config) -> float:
    miou = _runner(cfg).val()["mIoU"]
    shutil.rmtree(cfg.work_dir, ignore_errors=True)
    return float(miou)


def _runner(cfg: Config) -> Runner:
    cfg = Config(cfg.to_dict())
    cfg.experiment_name += f"_{time.time_ns()}"  # mmengine keeps loggers and visualizers by name
    cfg.visualizer = dict(type="Visualizer", name=cfg.experiment_name)
    return Runner.from_cfg(cfg)
