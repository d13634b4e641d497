"""Command line options that the benchmarks share."""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch.profiler's notices, before torch loads

import torch  # noqa: E402
from variants import VARIANTS  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


def parser(description: str) -> argparse.ArgumentParser:
    """The shared options."""
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument(
        "--rounds", type=int, default=30, help="timed steps of each row (default %(default)s)"
    )
    p.add_argument("--dtype", choices=["fp32", "amp"], default="fp32", help="amp: bf16 autocast")
    p.add_argument("--rank", type=int, default=32)
    p.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), metavar="KEY",
        help=f"these rows instead of a section's own: {', '.join(VARIANTS)}",
    )  # fmt: skip
    p.add_argument("--out", type=Path, help="folder of the results (default docs/benchmarks)")
    p.add_argument("--smoke", action="store_true", help="tiny sizes: does it run?")
    return p


def finish(args: argparse.Namespace) -> argparse.Namespace:
    """Fill in what depends on other options."""
    args.device = torch.device(args.device)
    if args.smoke:
        args.rounds, args.rank = 2, 4
    if args.out is None and args.smoke:
        args.out = Path(tempfile.mkdtemp(prefix="snella_benchmarks_"))
    args.out = args.out or ROOT / "docs" / "benchmarks"
    torch.manual_seed(0)
    return args


def chosen(usual, args: argparse.Namespace, without: set[str], of=VARIANTS) -> list[str]:
    """Keys of the rows to measure: the usual ones, or those asked for, of what there is."""
    return [key for key in of if key in (args.variants or usual) and key not in without]
