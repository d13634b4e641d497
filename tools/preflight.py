"""Look at a training before it runs: ``python tools/preflight.py CONFIG``.

Exit status 2 when something would silently go wrong, 1 when the config cannot run at all.
"""

import argparse
import json
import sys

try:
    from snella_seg import _require  # noqa: F401
except ImportError as missing:
    raise SystemExit(f"error: {missing}") from None

from mmengine.config import DictAction  # noqa: E402

from snella_seg import runtime  # noqa: E402
from snella_seg.files import write_text  # noqa: E402
from snella_seg.preflight import preflight  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Look at a training before it runs")
    parser.add_argument("config", help="config file")
    parser.add_argument("--work-dir", help="where the training will write")
    parser.add_argument("--amp", action="store_true", help="it will train in mixed precision")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    parser.add_argument(
        "--iters",
        type=int,
        default=6,
        help="iterations that are timed at the first and at the last budget; 0 measures nothing",
    )
    parser.add_argument("--json", metavar="FILE", help="also write what was found as JSON")
    return parser.parse_args()


@runtime.plain_errors
def main() -> None:
    args = parse_args()
    cfg = runtime.load_config(args.config, args.cfg_options)
    runtime.set_work_dir(cfg, args.work_dir, args.config)
    if args.amp:
        runtime.enable_amp(cfg)
    runtime.fit_to_machine(cfg, "none")
    if cfg.get("load_from"):
        runtime.check_checkpoint(cfg.load_from, "checkpoint (load_from)")
    runtime.prepare(cfg)
    runtime.check_datasets(cfg, "train_dataloader", "val_dataloader")
    runtime.allow_numpy_scalars()
    report = preflight(cfg, args.iters)
    print(report.text())
    if args.json:
        write_text(args.json, json.dumps(report.as_dict(), indent=1))
    sys.exit(2 if report.problems else 0)


if __name__ == "__main__":
    main()
