"""Two methods over several comparisons: ``python benchmarks/pooled.py WORK_DIR... --methods A B``.

Each work dir is one of tools/compare.py. Runs of one seed begin alike on every ground, so a seed's
differences are no independent draws: the interval over all grounds is that of the seeds' means.
``--runs FILE`` also writes the figures of all runs as JSON, a run a line.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

from snella_seg.lab.compare.statistics import by_method, confidence, mean_spread


def differences(study: dict, first: str, second: str) -> dict[int, float]:
    """mIoU of ``first`` minus that of ``second`` in points, by seed.

    Raises:
        ValueError: when the study lacks one of them, or they have no seed in common.
    """
    methods = by_method(study["runs"])
    for name in (first, second):
        if name not in methods:
            raise ValueError(f"{name} is none of its methods: {', '.join(methods)}")
    mine, other = ({row["seed"]: row["mIoU"] for row in methods[n]} for n in (first, second))
    if not mine.keys() & other.keys():
        raise ValueError(f"{first} and {second} have no seed in common")
    return {seed: mine[seed] - other[seed] for seed in sorted(mine.keys() & other.keys())}


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean of the values and its 95 % interval by Student's t; NaN where there is one value."""
    mean, spread = mean_spread(values)
    count = len(values)
    half = math.nan if spread is None else confidence(spread / math.sqrt(count), count)
    return mean, mean - half, mean + half


def pooled(tables: dict[str, dict[int, float]]) -> tuple[float, float, float]:
    """:func:`interval` of the means by seed, over the seeds that all grounds have.

    Raises:
        ValueError: when there is no such seed.
    """
    seeds = set.intersection(*(set(table) for table in tables.values()))
    if not seeds:
        raise ValueError("the comparisons have no seed in common")
    return interval([statistics.fmean(t[seed] for t in tables.values()) for seed in sorted(seeds)])


def figures(study: dict, ground: str) -> list[dict]:
    """What a page of results needs of each run: scores, by class too, rate, seed, CPU seconds."""
    keys = ("method", "lr", "seed", "mIoU", "NLL", "ECE", "cpu_seconds", "classes")
    runs = (run for rows in by_method(study["runs"]).values() for run in rows)
    return [{"ground": ground, **{key: run.get(key) for key in keys}} for run in runs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="WORK_DIR")
    parser.add_argument("--methods", nargs=2, default=["snella_v2", "lora"], metavar=("A", "B"))
    parser.add_argument("--runs", type=Path, metavar="FILE", help="write all runs there as JSON")
    args = parser.parse_args()
    tables, runs = {}, []
    for folder in args.folders:
        try:
            study = json.loads((folder / "study.json").read_text())
            tables[folder.name] = differences(study, *args.methods)
            runs += figures(study, folder.name)
        except (OSError, ValueError) as error:
            parser.error(f"{folder}: {error}")
    print(
        f"| {args.methods[0]} minus {args.methods[1]} | mean | 95 % | seeds |\n|---|---:|---:|---:|"
    )
    for name, table in tables.items():
        mean, low, high = interval([*table.values()])
        print(f"| {name} | {mean:+.2f} | {low:+.2f} to {high:+.2f} | {len(table)} |")
    try:
        mean, low, high = pooled(tables)
    except ValueError as error:
        parser.error(str(error))
    print(f"| all, seeds as units | {mean:+.2f} | {low:+.2f} to {high:+.2f} | |")
    if args.runs is not None:
        args.runs.write_text("[\n" + ",\n".join(map(json.dumps, runs)) + "\n]\n")


if __name__ == "__main__":
    main()
