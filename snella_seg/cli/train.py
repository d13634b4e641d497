"""Train a segmentor: ``python tools/train.py CONFIG``. Options as of mmseg's tools/train.py."""

import argparse
import os
from collections.abc import Sequence

from mmengine.runner import Runner
from mmseg.registry import RUNNERS

from ..configs import load_config
from ..loading import check_checkpoint, latest_checkpoint
from ..models.bands import check_bands
from ..models.feature_maps import check_feature_maps
from ..models.inference import refuse_lost_adapters, refuse_other_heads
from .config_checks import check_config
from .data import check_datasets, naming_bad_files
from .failures import plain_errors
from .machine import enable_amp, fit_to_machine, leave_process_group
from .reading import add_overrides, check_hooks, refuse_without_adapters, run_preparation
from .work_dir import locked, set_work_dir


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a segmentor")
    parser.add_argument("config", help="config file")
    parser.add_argument("--work-dir", help="where logs and checkpoints go")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="go on from a checkpoint, or from the latest in the work dir (no value, or auto)",
    )
    parser.add_argument("--amp", action="store_true", help="train in mixed precision")
    add_overrides(parser)
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)
    args = parser.parse_args(argv)
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return args


@plain_errors
def main(argv: Sequence[str] | None = None) -> None:
    train(parse_args(argv))
    leave_process_group()


def train(args: argparse.Namespace) -> None:
    """Train by the arguments of the command; nothing of the run outlives the call."""
    cfg = load_config(args.config, args.cfg_options)
    set_work_dir(cfg, args.work_dir, args.config)
    if args.amp:
        enable_amp(cfg)
    fit_to_machine(cfg, args.launcher)
    if args.resume:
        cfg.resume = True
        cfg.load_from = args.resume
        if args.resume == "auto":
            cfg.load_from = latest_checkpoint(cfg.work_dir)
            cfg.resume = cfg.load_from is not None
        elif args.resume.endswith(".safetensors"):
            raise ValueError(
                "an adapter file holds no optimizer to resume with; start from it by "
                f"--cfg-options load_from={args.resume}"
            )
        else:
            check_checkpoint(args.resume, "checkpoint to resume from", resume=True)
    elif cfg.get("load_from"):
        check_checkpoint(cfg.load_from, "checkpoint (load_from)")
    if cfg.get("resume") and cfg.get("load_from"):
        refuse_without_adapters(cfg, cfg.load_from)
    check_config(cfg)
    check_hooks(cfg)
    run_preparation(cfg)
    check_datasets(cfg, "train_dataloader", "val_dataloader")
    with locked(cfg.work_dir):
        runner = Runner.from_cfg(cfg) if "runner_type" not in cfg else RUNNERS.build(cfg)
        check_bands(runner.model)
        if cfg.get("resume"):
            refuse_other_heads(runner.model)
        refuse_lost_adapters(runner.model)
        check_feature_maps(runner.model)
        with naming_bad_files(runner):
            runner.train()
