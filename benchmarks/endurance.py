"""Whether memory and step time stay flat in a long run: ``python benchmarks/endurance.py``.

Trains the tests' tiny model (ViT of two blocks, 64x64 images), reallocating all along, and fits
straight lines to resident memory and CPU time of a step, with 95 % intervals from blocks of steps.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from scipy.stats import linregress, t

import snella_seg.register  # noqa: F401
from snella_seg.cli.train import main as train
from snella_seg.inject import METHODS

ROOT = Path(__file__).resolve().parents[1]
PAGE = 4096 / 2**20  # MiB


@HOOKS.register_module()
class EnduranceHook(Hook):
    """Notes memory (MiB) and CPU seconds after every iteration."""

    priority = "LOWEST"
    memory: list[float] = []
    clock: list[float] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.memory.append(pages * PAGE)
        self.clock.append(time.process_time())


def slope(values: np.ndarray, blocks: int = 40) -> tuple[float, float, float]:
    """Slope per 1,000 steps of the medians of blocks, half its 95 % interval, and their mean."""
    cut = values[: len(values) // blocks * blocks].reshape(blocks, -1)
    medians, width = np.median(cut, axis=1), cut.shape[1]
    line = linregress(np.arange(blocks) * width / 1000, medians)
    return line.slope, line.stderr * t.ppf(0.975, blocks - 2), float(medians.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iters", type=int, default=2000)
    parser.add_argument("--interval", type=int, default=20, help="between reallocations")
    parser.add_argument("--method", default="snella", help="'frozen' is mmengine and mmseg alone")
    args = parser.parse_args()
    bare = "" if METHODS[args.method].adapts else ", adapter=None"
    import sys

    sys.path.insert(0, str(ROOT / "tests"))
    from helpers import write_dataset, write_tiny_config

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_dataset(root / "data")
        config = write_tiny_config(root, root / "data")
        derived = config.with_name("long.py")
        derived.write_text(
            f"_base_ = './{config.name}'\n"
            f"train_cfg = dict(max_iters={args.iters}, val_interval={args.iters})\n"
            f"model = dict(backbone=dict(method={args.method!r}{bare}))\n"
            "custom_hooks = [dict(type='SparsityAllocationHook', target_sparsity=0.5, "
            f"interval={args.interval}), dict(type='EnduranceHook')]\n"
            "default_hooks = dict(checkpoint=dict(type='SnellaCheckpointHook', interval=200, "
            "max_keep_ckpts=2), logger=dict(interval=500))\n"
        )
        train([str(derived), "--work-dir", str(root / "run")])
        written = root / "run" / "sparsity_history.jsonl"
        history = written.read_bytes() if written.is_file() else b""
        lines = history.count(b"\n")
        kept = len(list((root / "run").glob("*.pth")))
    skip = args.iters // 10  # caches fill
    memory = np.array(EnduranceHook.memory)[skip:]
    steps = 1e3 * np.diff(EnduranceHook.clock)[skip:]
    for name, unit, values in (("memory", "MiB", memory), ("CPU time of a step", "ms", steps)):
        per_thousand, half, mean = slope(values)
        print(
            f"{name}: {mean:.1f} {unit}, slope {per_thousand:+.2f} +- {half:.2f} {unit} per 1,000 "
            "iterations"
        )
    print(
        f"history: {lines} lines, {len(history) / max(lines, 1):.0f} bytes each; checkpoints kept: "
        f"{kept}"
    )


if __name__ == "__main__":
    main()
