"""Look at a training before it runs: ``python tools/preflight.py CONFIG``.

Exit status 2 when something would silently go wrong, 1 when the config cannot run at all.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from ..configs import load_config
from ..lab.preflight import preflight
from ..loading import check_checkpoint
from ..loading.files import write_text
from .config_checks import check_config
from .data import check_datasets
from .failures import plain_errors
from .machine import enable_amp, fit_to_machine
from .reading import add_overrides, run_preparation
from .work_dir import set_work_dir


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Look at a training before it runs")
    parser.add_argument("config", help="config file")
    parser.add_argument("--work-dir", help="where the training will write")
    parser.add_argument("--amp", action="store_true", help="it will train in mixed precision")
    add_overrides(parser)
    parser.add_argument(
        "--iters",
        type=int,
        default=6,
        help="iterations that are timed at the first and at the last budget; 0 measures nothing",
    )
    parser.add_argument("--json", metavar="FILE", help="also write what was found as JSON")
    return parser.parse_args(argv)


@plain_errors
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    set_work_dir(cfg, args.work_dir, args.config)
    if args.amp:
        enable_amp(cfg)
    fit_to_machine(cfg, "none")
    if cfg.get("load_from"):
        check_checkpoint(cfg.load_from, "checkpoint (load_from)")
    check_config(cfg)
    run_preparation(cfg)
    check_datasets(cfg, "train_dataloader", "val_dataloader")
    report = preflight(cfg, args.iters)
    print(report.text())
    if args.json:
        write_text(args.json, json.dumps(report.as_dict(), indent=1))
    sys.exit(2 if report.problems else 0)
