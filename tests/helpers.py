"""What tests share besides fixtures: a tiny dataset and config, tools in this process."""

import itertools
import json
import runpy
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
COLOURS = np.array([[40, 40, 200], [40, 200, 40], [200, 40, 40], [200, 200, 40]])  # BGR, by class


def write_dataset(root: Path) -> None:
    """Write 4 + 2 images of coloured boxes in ADE20K's layout; the colour tells the class."""
    import cv2  # comes with mmcv, which most tests do without

    rng = np.random.default_rng(0)
    for split, count in (("training", 4), ("validation", 2)):
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for i in range(count):
            labels = np.full((64, 64), 1, np.uint8)
            for label in (2, 3, 4):
                top, left = rng.integers(0, 40, 2)
                labels[top : top + 24, left : left + 24] = label
            image = COLOURS[labels - 1] + rng.normal(0, 10, (64, 64, 3))
            labels[:2] = 0  # no class
            image = image.clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(root / "images" / split / f"{i}.jpg"), image)
            cv2.imwrite(str(root / "annotations" / split / f"{i}.png"), labels)


def write_tiny_config(folder: Path, dataset: Path) -> Path:
    """Write the config of ``tiny_config.py`` on a dataset."""
    path = folder / "tiny.py"
    text = (ROOT / "tests" / "tiny_config.py").read_text()
    path.write_text(text.replace("DATA_ROOT", dataset.as_posix()))
    return path


def save_base(config: Path, path: Path, seed: int = 1) -> Path:
    """Write weights for the backbone that a config wraps, drawn by a seed."""
    import torch
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    init_default_scope("mmseg")
    torch.manual_seed(seed)
    torch.save(MODELS.build(Config.fromfile(config).model.backbone.backbone).state_dict(), path)
    return path


#: How the bad inputs that were tried in this run of tests have ended -> how many of them.
ENDINGS: Counter[str] = Counter()
ONE_LINE = "one clear line"


def import_peft():
    """The package peft; skips the test or file where it is absent or goes with another torch."""
    try:
        import peft
    except Exception as error:
        pytest.skip(f"peft cannot be imported: {error}", allow_module_level=True)
    return peft


def refused(outcome, *fragments: str, code: int = 1) -> None:
    """Check that a tool has ended with one line on stderr that holds all fragments; count it.

    Args:
        outcome: of the ``tool`` fixture.
        code: the exit status, 2 where preflight lists problems, which then hold the fragments.
    """
    lines = outcome.err.strip().splitlines() or [""]
    said = outcome.out.partition("Problems")[2] if code == 2 else lines[-1]
    if outcome.code == 0:
        ending = "taken silently"
    elif "Traceback (most recent call last)" in outcome.err:
        ending = "traceback"
    elif sum(line.startswith("error: ") for line in lines) != (code == 1):
        ending = "no line, or several"
    else:
        ending = ONE_LINE if all(f in said for f in fragments) else "a line that does not help"
    ENDINGS[ending] += 1
    assert ending == ONE_LINE and outcome.code == code, f"{ending}: {outcome.err or outcome.out}"


def run_tool(name: str, *args) -> int:
    """Run ``tools/NAME.py`` within this process; return its exit status."""
    _forget_named_instances()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, args)])
        try:
            runpy.run_path(str(ROOT / "tools" / f"{name}.py"), run_name="__main__")
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _forget_named_instances() -> None:
    """mmengine keeps loggers and visualizers by name: the next run would write to the last's."""
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.registry import DefaultScope
    from mmengine.visualization import Visualizer

    def classes(base):
        return {base}.union(*map(classes, base.__subclasses__()))

    for base in (MessageHub, MMLogger, DefaultScope, Visualizer):
        for cls in classes(base):
            cls._instance_dict.clear()


def validations(work_dir: Path) -> list[dict]:
    """The metrics of each validation of the newest run, as the JSON log has them."""
    log = max(work_dir.glob("*/vis_data/scalars.json"))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line for line in lines if "mIoU" in line]


def scores_of(work_dir: Path) -> dict:
    """The metrics of a test run."""
    return json.loads(max(work_dir.glob("*/*.json")).read_text())


def history(work_dir: Path) -> list[dict]:
    lines = (work_dir / "sparsity_history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def same_metrics(found: dict, expected: dict) -> bool:
    return all(found[key] == expected[key] for key in ("aAcc", "mIoU", "mAcc"))


def pairwise(factors: dict[str, list], seed: int = 0, draws: int = 50) -> list[dict]:
    """Rows in which every two levels of two factors meet: few, found greedily.

    Args:
        factors: name -> levels.
        seed: of the rows that are drawn; of ``draws`` each time the one with most new pairs stays.
    """
    rng = np.random.default_rng(seed)
    missing = {
        frozenset([(a, x), (b, y)])
        for a, b in itertools.combinations(factors, 2)
        for x in range(len(factors[a]))
        for y in range(len(factors[b]))
    }

    def pairs(row: dict) -> set:
        return {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}

    rows = []
    while missing:
        fixed = dict(min(missing, key=sorted))
        drawn = [
            {f: fixed.get(f, int(rng.integers(len(levels)))) for f, levels in factors.items()}
            for _ in range(draws)
        ]
        rows.append(max(drawn, key=lambda row: len(pairs(row) & missing)))
        missing -= pairs(rows[-1])
    return [{f: factors[f][level] for f, level in row.items()} for row in rows]
