"""Show where a run's budget went, and why: ``report.py WORK_DIR`` writes a page and pictures."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..lab.report import write_report
from .failures import plain_errors


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work_dir", type=Path, help="of a run with SparsityAllocationHook")
    parser.add_argument("--config", help="default: the newest .py in the work dir")
    parser.add_argument("--checkpoint", help="default: the newest whole one in the work dir")
    parser.add_argument("--out", type=Path, help="folder to write to; default: WORK_DIR/report")
    return parser.parse_args(argv)


@plain_errors
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    page = write_report(args.work_dir, args.config, args.checkpoint, args.out)
    print(f"report: {page}")
