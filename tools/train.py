"""Train a segmentor: ``python tools/train.py CONFIG``. Options as of mmseg's tools/train.py."""

import argparse
import os

try:
    from snella_seg import _require  # noqa: F401
except ImportError as missing:
    raise SystemExit(f"error: {missing}") from None

from mmengine.config import DictAction  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from mmseg.registry import RUNNERS  # noqa: E402

import snella_seg.register  # noqa: E402, F401
from snella_seg import runtime  # noqa: E402


def parse_args() -> argparse.Namespace:
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
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="override settings of the config, such as train_cfg.max_iters=1000",
    )
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return args


@runtime.plain_errors
def main() -> None:
    args = parse_args()
    cfg = runtime.load_config(args.config, args.cfg_options)
    runtime.set_work_dir(cfg, args.work_dir, args.config)
    if args.amp:
        runtime.enable_amp(cfg)
    runtime.fit_to_machine(cfg, args.launcher)
    if args.resume:
        cfg.resume = True
        cfg.load_from = args.resume
        if args.resume == "auto":
            cfg.load_from = runtime.latest_checkpoint(cfg.work_dir)
            cfg.resume = cfg.load_from is not None
        elif args.resume.endswith(".safetensors"):
            raise ValueError(
                "an adapter file holds no optimizer to resume with; start from it by "
                f"--cfg-options load_from={args.resume}"
            )
        else:
            runtime.check_checkpoint(args.resume, "checkpoint to resume from")
    elif cfg.get("load_from"):
        runtime.check_checkpoint(cfg.load_from, "checkpoint (load_from)")
    runtime.prepare(cfg)
    runtime.check_datasets(cfg, "train_dataloader", "val_dataloader")
    runtime.allow_numpy_scalars()
    runner = Runner.from_cfg(cfg) if "runner_type" not in cfg else RUNNERS.build(cfg)
    if cfg.get("resume"):
        runtime.refuse_other_heads(runner.model)
    runner.train()
    runtime.leave_process_group()


if __name__ == "__main__":
    main()
