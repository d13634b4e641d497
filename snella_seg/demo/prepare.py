"""What the demo needs before its main job: scenes, a source model, a frozen reference."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from ..configs import own
from .dataset import STAMP, write_dataset

RESULTS = "results.json"


def prepare(cfg: Config) -> None:
    """Make what is not there yet, and say so; a later run finds it and is quick.

    Writes into the folder two above ``cfg.train_dataloader.dataset.data_root``: scenes of both
    domains, ``source.pth`` (a segmentor trained fully on the source domain), the predictions of a
    head on its frozen backbone for the target domain (``frozen_predictions``), ``results.json``.

    Args:
        cfg: the demo's config.
    """
    root = Path(cfg.train_dataloader.dataset.data_root).parents[1]
    scenes = root / "scenes"
    if write_dataset(scenes):
        _say(f"generated street scenes by day and by night in {scenes}")
    source = _quiet(Config.fromfile(own("_base_/demo_source.py")[0]), root)
    frozen = _quiet(Config.fromfile(own("_base_/demo_frozen.py")[0]), root)
    key = _key((scenes / STAMP).read_text(), source, frozen)
    if _results(root).get("key") == key:
        return
    begin = time.time()
    _say(f"training a small ViT on the day scenes, {source.train_cfg.max_iters} iterations")
    results = dict(key=key, source_by_day=_train(source, root / "source.pth"))
    as_is = _quiet(Config.fromfile(own("_base_/demo_source.py")[0]), root)
    as_is.update(load_from=str(root / "source.pth"), val_dataloader=frozen.val_dataloader)
    results["source_by_night"] = _evaluate(as_is)
    _say(
        f"mIoU {results['source_by_day']:.2f} by day, {results['source_by_night']:.2f} by night; "
        f"training a head for the night on its frozen backbone, "
        f"{frozen.train_cfg.max_iters} iterations"
    )
    frozen.val_evaluator.output_dir = str(root / "frozen_predictions")
    results["frozen"] = _train(frozen)
    partial = root / f"{RESULTS}.partial"
    partial.write_text(json.dumps(results, indent=1))
    partial.replace(root / RESULTS)
    _say(f"mIoU {results['frozen']:.2f}; prepared in {time.time() - begin:.0f} s")


def _results(root: Path) -> dict:
    path = root / RESULTS
    return json.loads(path.read_text()) if path.is_file() else {}


def _say(what: str) -> None:
    print(f"demo: {what}", flush=True)


def _key(stamp: str, *configs: Config) -> str:
    """What the prepared results depend on, as a short hash."""
    text = stamp + json.dumps([c.to_dict() for c in configs], sort_keys=True, default=str)
    return hashlib.sha1(text.encode()).hexdigest()[:16]


def _quiet(cfg: Config, root: Path) -> Config:
    """Let a preparatory run keep to itself: own names, own folder, no log."""
    name = f"demo_{Path(cfg.filename).stem}"
    cfg.update(
        launcher="none",
        work_dir=str(root / "runs" / name),
        experiment_name=name,
        log_level="ERROR",
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
