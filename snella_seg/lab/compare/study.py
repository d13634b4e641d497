"""A comparison from the choice of learning rates to the report."""

import copy
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from mmengine.config import Config

from ... import register  # noqa: F401
from ...loading import CheckpointError, latest_checkpoint, write_text
from .cases import Case, choose, look_at
from .cost import measure_costs
from .execute import execute
from .forgetting import add_forgetting, score_source
from .plan import Run, run_config
from .rates import ComparisonFailed, choose_rates
from .statistics import reference_method
from .study_report import environment, write_study_report
from .variant import Variant

STUDY = "study.json"


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
    search_seeds: int = 1,
    jobs: int = 1,
    work_dir: str | None = None,
    cost_rounds: int = 3,
    cases: int = 4,
    command: str = "",
    source: Config | None = None,
    first_seed: int = 0,
    say: Callable[[str], None] = print,
) -> dict:
    """Train a config by several methods, with several seeds, and report on them.

    Learning rates are those of the config, given (``lr``), or chosen for each method among
    ``lrs`` by the mIoU on training images that were held out; the validation images have no part
    in that. While the best rate is the first or the last, the grid goes on beyond it, by the same
    factor. The best of ``head_lrs`` with a frozen backbone is used by all methods.

    Args:
        cfg: a config whose backbone is a SnellaBackbone, fitted to the machine, its data at hand.
        config: its path, for the report.
        methods: names in :data:`snella_seg.inject.METHODS`, maybe with options, as in
            ``snella:scale=0.3`` (:class:`snella_seg.lab.compare.variant.Variant`).
        seeds: runs of each method; 0 ends with the choice of rates.
        lrs, head_lrs, lr, holdout: see above.
        iters: length of a run; None for that of the config.
        search_iters: length of the runs that judge learning rates; None for ``iters``.
        search_seeds: runs that judge each rate, by their mean.
        jobs: trainings side by side.
        work_dir: where all is kept; a comparison that was cut off goes on there.
        cost_rounds: how often time and memory of each method are measured; 0 for not at all.
        cases: how many validation images the report shows, with what each method made of them.
        command: by which it was called, for the report.
        source: the task that the backbone was trained on, of
            :func:`snella_seg.lab.compare.source_config`, on which forgetting is measured.
        first_seed: seed of the first run of each method; runs that judge a rate count from 0.
        say: takes lines of progress.

    Returns:
        What ``study.json`` in the work dir holds.

    Raises:
        ValueError: on unknown methods, or a config that cannot be varied.
        ComparisonFailed: at the end, when runs failed.
    """
    methods, lr = list(methods), dict(lr or {})
    twice = [method for method in methods if methods.count(method) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is given twice in --methods")
    for method in methods:
        Variant.parse(method).apply(copy.deepcopy(cfg))  # what is refused is so before any run
    unused = [method for method in lr if method not in methods]
    if unused:
        raise ValueError(f"a learning rate is given for {unused[0]}, which is not compared")
    if min(seeds, first_seed, cases) < 0 or min(jobs, search_seeds) < 1:
        raise ValueError(
            "seeds, first_seed and cases must not be negative, jobs and search_seeds must be "
            f"positive, got {seeds}, {first_seed}, {cases}, {jobs} and {search_seeds}"
        )
    if not (seeds or lrs or head_lrs):
        raise ValueError("there is nothing to do: give seeds, or learning rates to choose from")
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
    if source is not None and seeds:  # first, as it shows whether head and data fit
        study["source"] = {"checkpoint": source.load_from, "mIoU": score_source(source)}
        say(f"source model: mIoU {study['source']['mIoU']:.2f} on its own task")

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

    def judge(pairs: list[tuple[str, float]], head_lr: float | None = None) -> list[dict]:
        """Runs that judge learning rates: of the heads for a frozen backbone, else of a method."""
        return search(
            [
                Run(method, rate, head_lr, seed, search=True)
                if method != "frozen"
                else Run(method, None, rate, seed, search=True)
                for method, rate in pairs
                for seed in range(search_seeds)
            ]
        )

    head_lr = None
    if head_lrs:
        say(f"learning rate of the heads: {', '.join(f'{rate:g}' for rate in head_lrs)}")
        asked = [("frozen", rate) for rate in head_lrs]
        head_lr = choose_rates(asked, judge, "head_lr")["frozen"]
        say(f"heads: {head_lr:g}")
    searched = [m for m in methods if m not in lr and m != "frozen"] if lrs else []
    if searched:
        asked = [(method, rate) for method in searched for rate in lrs]
        chosen = choose_rates(asked, lambda pairs: judge(pairs, head_lr), "lr")
        for method, rate in chosen.items():
            say(f"{method}: {rate:g}")
        lr.update(chosen)
    drawn = range(first_seed, first_seed + seeds)
    runs = [Run(m, lr.get(m), head_lr, seed) for seed in drawn for m in methods]
    results = train(runs)
    if "source" in study:
        add_forgetting(results, cfg, source, study["source"]["mIoU"], folder / "runs", say)
    study["runs"] = [_row(run, result) for run, result in results.items()]
    if cost_rounds and runs:
        configs = {run.method: run_config(cfg, run, iters=iters) for run in runs[: len(methods)]}
        study["costs"] = measure_costs(configs, folder / "costs", cost_rounds, say)
    write_text(folder / STUDY, json.dumps(study, indent=1))
    shown, meta = _cases(cfg, results, folder / "runs", cases, first_seed)
    say(f"report: {write_study_report(study, folder, shown, meta)}")
    failed = [row for row in study["runs"] if "error" in row]
    if failed:
        raise ComparisonFailed(
            f"{len(failed)} runs failed, the first: {failed[0]['folder']}: {failed[0]['error']}"
        )
    return study


def _cases(
    cfg: Config, results: dict[Run, dict], folder: Path, count: int, seed: int
) -> tuple[list[Case], dict]:
    """Images on which the runs of one seed differ, and the dataset's meta information."""
    runs = [run for run, result in results.items() if "error" not in result and run.seed == seed]
    segmentors = {}
    for run in runs if count else []:
        try:
            path = latest_checkpoint(str(folder / run.name))
        except CheckpointError:  # it was removed or damaged since; the report does without
            continue
        if path is not None:
            segmentors[run.method] = run_config(cfg, run), path
    if len(segmentors) < 2:
        return [], {}
    seen, meta = look_at(segmentors)
    return choose(seen, reference_method(segmentors), count), meta


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
