"""A comparison from the choice of learning rates to the report."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from mmengine.config import Config

from ... import register  # noqa: F401
from ...loading import write_text
from .cost import measure_costs
from .execute import execute
from .plan import Run, run_config
from .study_report import environment, write_study_report
from .variant import Variant

STUDY = "study.json"


class ComparisonFailed(RuntimeError):
    """A comparison some of whose runs failed."""


def compare(
    cfg: Config,
    config: str,
    methods: Iterable[str],
    seeds: int = 3,
    lrs: Iterable[float] = (),
    head_lrs: Iterable[float] = (),
    lr: dict[str, float] | None = None,
    holdout: float = 0.2,
    iters: int | None = None,
    search_iters: int | None = None,
    jobs: int = 1,
    work_dir: str | None = None,
    cost_rounds: int = 3,
    command: str = "",
    say: Callable[[str], None] = print,
) -> dict:
    """Train a config by several methods, with several seeds, and report on them.

    Learning rates are those of the config, given (``lr``), or chosen for each method among
    ``lrs`` by the mIoU on training images that were held out; the validation images have no part
    in that. The best of ``head_lrs`` with a frozen backbone is used by all methods.

    Args:
        cfg: a config whose backbone is a SnellaBackbone, fitted to the machine, its data at hand.
        config: its path, for the report.
        methods: names in :data:`snella_seg.inject.METHODS`, maybe with options, as in
            ``snella:scale=0.3`` (:class:`snella_seg.lab.compare.variant.Variant`).
        seeds: runs of each method, with seeds from 0.
        lrs, head_lrs, lr, holdout: see above.
        iters: length of a run; None for that of the config.
        search_iters: length of the runs that judge learning rates; None for ``iters``.
        jobs: trainings side by side.
        work_dir: where all is kept; a comparison that was cut off goes on there.
        cost_rounds: how often time and memory of each method are measured; 0 for not at all.
        command: by which it was called, for the report.
        say: takes lines of progress.

    Returns:
        What ``study.json`` in the work dir holds.

    Raises:
        ValueError: on unknown methods, or a config that cannot be varied.
        ComparisonFailed: at the end, when runs failed.
    """
    methods, lr = list(dict.fromkeys(methods)), dict(lr or {})
    for method in methods:
        Variant.parse(method)
    unused = [method for method in lr if method not in methods]
    if unused:
        raise ValueError(f"a learning rate is given for {unused[0]}, which is not compared")
    if seeds < 1 or jobs < 1:
        raise ValueError(f"seeds and jobs must be positive, got {seeds} and {jobs}")
    folder = Path(work_dir or Path("work_dirs") / f"compare_{Path(config).stem}")
    study = {
        "config": str(config),
        "command": command,
        "environment": environment(),
        "seeds": seeds,
        "holdout": holdout,
        "schedule": _schedule(cfg, iters),
        "search_schedule": _schedule(cfg, search_iters or iters),
        "search": [],
        "runs": [],
        "costs": {},
        "cost_rounds": cost_rounds,
    }

    def train(runs: list[Run]) -> dict[Run, dict]:
        length = {True: search_iters or iters, False: iters}
        return execute(
            runs,
            lambda run: run_config(cfg, run, holdout, length[run.search]),
            folder / "runs",
            jobs,
            say,
        )

    def search(runs: list[Run]) -> list[dict]:
        found = [_row(run, result) for run, result in train(runs).items()]
        study["search"] += found
        return found

    head_lr = None
    if head_lrs:
        say(f"learning rate of the heads: {', '.join(f'{rate:g}' for rate in head_lrs)}")
        head_lr = _best(search([Run("frozen", None, rate, search=True) for rate in head_lrs]))[
            "head_lr"
        ]
        say(f"heads: {head_lr:g}")
    searched = [m for m in methods if m not in lr and m != "frozen"] if lrs else []
    if searched:
        rows = search([Run(m, rate, head_lr, search=True) for m in searched for rate in lrs])
        for method in searched:
            lr[method] = _best([row for row in rows if row["method"] == method])["lr"]
            say(f"{method}: {lr[method]:g}")
    runs = [Run(m, lr.get(m), head_lr, seed) for seed in range(seeds) for m in methods]
    study["runs"] = [_row(run, result) for run, result in train(runs).items()]
    if cost_rounds:
        configs = {run.method: run_config(cfg, run, iters=iters) for run in runs[: len(methods)]}
        study["costs"] = measure_costs(configs, folder / "costs", cost_rounds, say)
    write_text(folder / STUDY, json.dumps(study, indent=1))
    say(f"report: {write_study_report(study, folder)}")
    failed = [row for row in study["search"] + study["runs"] if "error" in row]
    if failed:
        raise ComparisonFailed(
            f"{len(failed)} runs failed, the first: {failed[0]['folder']}: {failed[0]['error']}"
        )
    return study


def _schedule(cfg: Config, length: int | None) -> str:
    """How long a run is, for the report."""
    key = "max_iters" if "max_iters" in cfg.train_cfg else "max_epochs"
    unit = "iterations" if key == "max_iters" else "epochs"
    return f"{length or cfg.train_cfg[key]} {unit} of {cfg.train_dataloader.batch_size} images"


def _row(run: Run, result: dict) -> dict:
    return {
        "method": run.method,
        "lr": run.lr,
        "head_lr": run.head_lr,
        "seed": run.seed,
        "folder": run.name,
        **result,
    }


def _best(rows: list[dict]) -> dict:
    """The run with the best mIoU.

    Raises:
        ComparisonFailed: when all of them failed.
    """
    good = [row for row in rows if "error" not in row]
    if not good:
        raise ComparisonFailed(
            f"all runs of {rows[0]['method']} that judge its learning rate failed, the first: "
            f"{rows[0]['error']}"
        )
    return max(good, key=lambda row: row["mIoU"])
