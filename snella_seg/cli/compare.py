"""Compare ways of tuning a backbone: ``python tools/compare.py CONFIG --methods lora snella``."""

import argparse
import sys
from collections.abc import Sequence

from mmengine.registry import init_default_scope

from ..configs import load_config
from ..lab.compare import compare, source_config
from .data import check_datasets
from .failures import plain_errors
from .machine import fit_to_machine
from .reading import add_overrides, run_preparation

PUBLISHED = ("frozen", "bitfit", "lora", "snell", "snella", "full")


def method_rate(text: str) -> tuple[str, float]:
    """Read METHOD=RATE, where the method may have options."""
    method, _, rate = text.rpartition("=")
    return method, float(rate)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config of a SnellaBackbone")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=PUBLISHED,
        metavar="METHOD[:OPTION=VALUE,...]",
        help=f"such as snella:scale=0.3,rank=8; default: {' '.join(PUBLISHED)}",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, help="runs of each method (3); 0: choose rates only"
    )
    parser.add_argument(
        "--first-seed",
        type=int,
        default=0,
        help="seed of the first run (0); seeds that no choice has seen confirm what was found",
    )
    parser.add_argument(
        "--lrs",
        nargs="+",
        type=float,
        default=(),
        help="choose the learning rate of what each method trains in the backbone among these, "
        "and beyond while the best is the first or the last",
    )
    parser.add_argument(
        "--head-lrs",
        nargs="+",
        type=float,
        default=(),
        help="choose the learning rate of the heads among these, on a frozen backbone, for all",
    )
    parser.add_argument(
        "--lr",
        nargs="+",
        type=method_rate,
        default=(),
        metavar="METHOD=RATE",
        help="give learning rates instead",
    )
    parser.add_argument(
        "--holdout",
        type=float,
        default=0.2,
        help="share of the training images on which learning rates are judged (0.2)",
    )
    parser.add_argument("--iters", type=int, help="length of a run, its schedule scaled along")
    parser.add_argument("--search-iters", type=int, help="length of a run that judges a rate")
    parser.add_argument("--search-seeds", type=int, default=1, help="runs that judge a rate (1)")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (1)")
    parser.add_argument("--work-dir", help="default: work_dirs/compare_CONFIG")
    parser.add_argument(
        "--cost-rounds",
        type=int,
        default=3,
        help="how often time and memory of each method are measured; 0 for not at all (3)",
    )
    parser.add_argument(
        "--cases",
        type=int,
        default=4,
        help="how many validation images the report shows, with what each method made of them (4)",
    )
    add_overrides(parser)
    return parser.parse_args(argv)


@plain_errors
def main(argv: Sequence[str] | None = None) -> None:
    args = vars(parse_args(argv))
    words = sys.argv[1:] if argv is None else argv
    args["command"] = " ".join(["snella-seg", "compare", *words])
    args["lr"] = dict(args["lr"])
    cfg = load_config(args["config"], args.pop("cfg_options"))
    init_default_scope(cfg.get("default_scope", "mmseg"))
    fit_to_machine(cfg, "none")
    run_preparation(cfg)
    cfg.pop("prepare", None)
    check_datasets(cfg, "train_dataloader", "val_dataloader")
    source = source_config(cfg)
    cfg.pop("source", None)
    if source is not None:
        fit_to_machine(source, "none")
        check_datasets(source, "val_dataloader")
    compare(cfg, source=source, **args)
