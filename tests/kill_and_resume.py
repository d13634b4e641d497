"""Kill training at random moments, resume, and compare the end with an unbroken run, bit by bit.

``python tests/kill_and_resume.py --kills 20`` does so for every kind of run in ``VARIANTS``: each
is killed (SIGKILL) at a random moment, resumed from its last checkpoint, killed again in half of
the cases, and brought to its end. Exit status 0 says that all ends were the same.
"""

import argparse
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
#: Every source of randomness that a run may have: dropout in heads and adapters, drop-path,
#: augmentations, in workers and in the main process.
COMMON = """
model['backbone'].update(adapter=dict(rank=4, dropout=0.1, drop_path=0.1), base_checkpoint='BASE')
param_scheduler = [dict(type='PolyLR', eta_min=0.0, by_epoch=False, begin=0, end=16)]
train_pipeline[-1:-1] = [
    dict(type='RandomCrop', crop_size=(64, 64), cat_max_ratio=0.9),
    dict(type='PhotoMetricDistortion'),
]
train_pipeline.insert(2, dict(type='RandomResize', scale=(64, 64), ratio_range=(1.0, 1.6)))
train_dataloader['dataset']['pipeline'] = train_pipeline
default_hooks['checkpoint'].update(
    type='SnellaCheckpointHook', interval=3, max_keep_ckpts=1, save_best='mIoU')
"""
EPOCHS = """
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=8, val_interval=3)
train_dataloader['sampler'] = dict(type='DefaultSampler', shuffle=True)
"""
VARIANTS = {
    # Gradients wait for more at every second checkpoint.
    "iterations, accumulation, workers": """
train_cfg = dict(type='IterBasedTrainLoop', max_iters=16, val_interval=4)
optim_wrapper['accumulative_counts'] = 2
train_dataloader.update(num_workers=2, persistent_workers=True)
""",
    "epochs": EPOCHS
    + """
default_hooks['checkpoint'].update(by_epoch=True, interval=1)
optim_wrapper['accumulative_counts'] = 3
""",
    "epochs, checkpoints within them": EPOCHS
    + """
custom_hooks[0]['interval'] = None
""",
}


def write_config(folder: Path, name: str) -> Path:
    """Write a variant's config, and the data and the base that all share."""
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers import write_dataset

    data, base = folder / "data", folder / "base.pth"
    text = (ROOT / "tests" / "tiny_config.py").read_text()
    text = text.replace("DATA_ROOT", data.as_posix())
    if not data.is_dir():
        write_dataset(data)
    path = folder / f"{re.sub(r'[^a-z]+', '_', name)}.py"
    path.write_text(text + COMMON.replace("BASE", base.as_posix()) + VARIANTS[name])
    if not base.is_file():
        from mmengine.config import Config
        from mmengine.registry import init_default_scope
        from mmseg.registry import MODELS

        init_default_scope("mmseg")
        torch.manual_seed(1)
        torch.save(MODELS.build(Config.fromfile(path).model.backbone.backbone).state_dict(), base)
    return path


def train(config: Path, work_dir: Path, kill_after: float | None = None) -> bool:
    """Train, or go on, in a process of its own; tell whether it came to its end."""
    child = os.fork()
    if child == 0:
        os.setsid()  # with its workers it can be killed as one
        code = 1
        try:
            log = os.open(work_dir.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.argv = ["train", str(config), "--work-dir", str(work_dir), "--resume"]
            import runpy

            runpy.run_path(str(ROOT / "tools" / "train.py"), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)
    deadline = time.monotonic() + (kill_after if kill_after is not None else 600)
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            if status:
                raise RuntimeError(work_dir.with_suffix(".log").read_text()[-3000:])
            return True
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def end_of(work_dir: Path) -> dict:
    """What a run ended with: its last checkpoint, without times and paths, and the history."""
    last = Path((work_dir / "last_checkpoint").read_text())
    kept = sorted(path.name for path in work_dir.glob("*.pth*"))
    checkpoint = torch.load(last, map_location="cpu", weights_only=False)
    kinds = ("state_dict", "optimizer", "param_schedulers", "snella")
    return dict(
        {kind: checkpoint[kind] for kind in kinds},
        kept=kept,
        history=(work_dir / "sparsity_history.jsonl").read_text(),
    )


def differences(found, expected, where: str = "") -> list[str]:
    """Paths of what differs between two nested structures."""
    if isinstance(expected, dict) and isinstance(found, dict):
        keys = [*expected, *(k for k in found if k not in expected)]
        pairs = [(found.get(k), expected.get(k), f"{where}.{k}") for k in keys]
        return [d for pair in pairs for d in differences(*pair)]
    if isinstance(expected, (list, tuple)) and len(expected) == len(found):
        pairs = zip(found, expected, strict=True)
        return [d for i, (f, e) in enumerate(pairs) for d in differences(f, e, f"{where}[{i}]")]
    if torch.is_tensor(expected):
        same = torch.is_tensor(found) and torch.equal(found, expected)
    else:
        same = found == expected
    return [] if same else [where]


def check(name: str, folder: Path, kills: int, rng: random.Random) -> tuple[int, int]:
    """Kill a variant ``kills`` times; return how many kills there were, and how many bad ends."""
    config = write_config(folder, name)
    unbroken = folder / f"{config.stem}_unbroken"
    start = time.monotonic()
    train(config, unbroken)
    duration = time.monotonic() - start
    expected = end_of(unbroken)
    done = bad = 0
    for attempt in range(10 * kills):
        if done >= kills:
            break
        work_dir = folder / f"{config.stem}_{attempt}"
        moments = []
        for _ in range(rng.choice((1, 2))):
            if train(config, work_dir, kill_after=rng.uniform(0.1, 1.0) * duration):
                break
            saved = sorted(path.name for path in work_dir.glob("*.pth*"))
            moments.append("+".join(saved) or "nothing saved")
        done += len(moments)
        if moments:
            train(config, work_dir)
            wrong = differences(end_of(work_dir), expected)
            bad += bool(wrong)
            verdict = f"DIFFERS in {', '.join(wrong[:4])}" if wrong else "same bits"
            print(f"{name}: killed at {'; at '.join(moments)}: {verdict}", flush=True)
        shutil.rmtree(work_dir, ignore_errors=True)
    return done, bad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="over all variants, at least")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    import mmseg.apis  # noqa: F401  once, before processes are forked

    import snella_seg.register  # noqa: F401

    rng, total, bad = random.Random(args.seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for name in args.variants:
            kills = -(-args.kills // len(args.variants))
            done, wrong = check(name, Path(folder), kills, rng)
            total, bad = total + done, bad + wrong
    print(f"{total} kills, {bad} bad ends")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
