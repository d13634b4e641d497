"""Test a segmentor: ``python tools/test.py CONFIG CHECKPOINT``. Options as of mmseg's test.py."""

import argparse
import os
from collections.abc import Sequence

from mmengine.runner import Runner

from ..configs import load_config
from ..loading import check_checkpoint
from ..loading.files import make_folder
from ..models.feature_maps import check_feature_maps
from ..models.inference import refuse_lost_adapters, refuse_other_heads
from .config_checks import check_config
from .data import check_datasets
from .failures import plain_errors
from .machine import fit_to_machine, leave_process_group
from .reading import add_overrides, refuse_without_adapters, run_preparation
from .work_dir import set_work_dir


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Test a segmentor")
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("--work-dir", help="where the metrics go, as JSON")
    parser.add_argument("--out", help="folder for the predicted label maps")
    parser.add_argument("--show", action="store_true", help="show predictions in a window")
    parser.add_argument("--show-dir", help="folder for painted images")
    parser.add_argument("--wait-time", type=float, default=2, help="seconds to show each image")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation")
    add_overrides(parser)
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)
    args = parser.parse_args(argv)
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return args


def draw_predictions(cfg, args: argparse.Namespace) -> None:
    """Switch on mmseg's visualization hook."""
    hook = cfg.default_hooks.get("visualization")
    if hook is None:
        raise ValueError(
            "--show and --show-dir need default_hooks.visualization="
            "dict(type='SegVisualizationHook') in the config"
        )
    hook.update(draw=True)
    if args.show:
        hook.update(show=True, wait_time=args.wait_time)
    if args.show_dir:
        cfg.visualizer.save_dir = args.show_dir


@plain_errors
def main(argv: Sequence[str] | None = None) -> None:
    score(parse_args(argv))
    leave_process_group()


def score(args: argparse.Namespace) -> None:
    """Score by the arguments of the command; nothing of the run outlives the call."""
    cfg = load_config(args.config, args.cfg_options)
    set_work_dir(cfg, args.work_dir, args.config)
    fit_to_machine(cfg, args.launcher)
    run_preparation(cfg)
    check_checkpoint(args.checkpoint, "checkpoint")
    refuse_without_adapters(cfg, args.checkpoint)
    cfg.load_from = args.checkpoint
    if args.show or args.show_dir:
        draw_predictions(cfg, args)
    if args.tta:
        if not (cfg.get("tta_model") and cfg.get("tta_pipeline")):
            raise ValueError("--tta needs tta_model and tta_pipeline in the config")
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
        cfg.tta_model.module = cfg.model
        cfg.model = cfg.tta_model
    if args.out:
        cfg.test_evaluator.update(output_dir=args.out, keep_results=True)
    check_config(cfg)
    check_datasets(cfg, "test_dataloader")
    for folder in filter(None, (cfg.work_dir, args.out, args.show_dir)):
        make_folder(folder)
    runner = Runner.from_cfg(cfg)
    refuse_other_heads(runner.model)
    refuse_lost_adapters(runner.model)
    check_feature_maps(runner.model)
    runner.test()
