"""Reading a config as all tools do."""

import importlib
from pathlib import Path

from mmengine.config import Config


def set_work_dir(cfg: Config, work_dir: str | None, config_path: str) -> None:
    """Decide the work dir as mmseg does: argument, then config, then the config's name."""
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("work_dirs") / Path(config_path).stem)


def run_preparation(cfg: Config) -> None:
    """Run the function that a config names in ``prepare = 'module:function'``, if it does."""
    if cfg.get("prepare"):
        module, _, function = cfg.prepare.partition(":")
        getattr(importlib.import_module(module), function)(cfg)
