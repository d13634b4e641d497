"""Compare ways of tuning a backbone: ``python tools/compare.py CONFIG --methods lora snella``."""

import argparse
import sys

try:
    from snella_seg import _require  # noqa: F401
except ImportError as missing:
    raise SystemExit(f"error: {missing}") from None

from mmengine.config import DictAction  # noqa: E402

from snella_seg import runtime  # noqa: E402
from snella_seg.compare import compare  # noqa: E402

PUBLISHED = ("frozen", "bitfit", "lora", "snell", "snella", "full")


def method_rate(text: str) -> tuple[str, float]:
    """Read METHOD=RATE, where the method may have options."""
    method, _, rate = text.rpartition("=")
    return method, float(rate)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config of a SnellaBackbone")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=PUBLISHED,
        metavar="METHOD[:OPTION=VALUE,...]",
        help=f"such as snella:scale=0.3,rank=8; default: {' '.join(PUBLISHED)}",
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method (3)")
    parser.add_argument(
        "--lrs",
        nargs="+",
        type=float,
        default=(),
        help="choose the learning rate of what each method trains in the backbone among these",
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
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (1)")
    parser.add_argument("--work-dir", help="default: work_dirs/compare_CONFIG")
    parser.add_argument(
        "--cost-rounds",
        type=int,
        default=3,
        help="how often time and memory of each method are measured; 0 for not at all (3)",
    )
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    return parser.parse_args()


@runtime.plain_errors
def main() -> None:
    args = vars(parse_args())
    args["command"] = " ".join(["python", "tools/compare.py", *sys.argv[1:]])
    args["lr"] = dict(args["lr"])
    cfg = runtime.load_config(args["config"], args.pop("cfg_options"))
    compare(cfg, **args)


if __name__ == "__main__":
    main()
