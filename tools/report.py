"""Show where a run's budget went, and why: ``report.py WORK_DIR`` writes a page and pictures."""

import argparse
from pathlib import Path

try:
    from snella_seg import _require  # noqa: F401
except ImportError as missing:
    raise SystemExit(f"error: {missing}") from None

import snella_seg.register  # noqa: E402, F401
from snella_seg import runtime  # noqa: E402
from snella_seg.report import write_report  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work_dir", type=Path, help="of a run with SparsityAllocationHook")
    parser.add_argument("--config", help="default: the newest .py in the work dir")
    parser.add_argument("--checkpoint", help="default: the newest whole one in the work dir")
    parser.add_argument("--out", type=Path, help="folder to write to; default: WORK_DIR/report")
    return parser.parse_args()


@runtime.plain_errors
def main() -> None:
    args = parse_args()
    page = write_report(args.work_dir, args.config, args.checkpoint, args.out)
    print(f"report: {page}")


if __name__ == "__main__":
    main()
