"""What each config of the zoo costs: the table of configs/README.md.

``python benchmarks/zoo.py`` counts, on the meta device, and prints the table as Markdown.
``python benchmarks/zoo.py --measure NAME ...`` takes two training steps on one image of noise, and
``--preflight NAME ...`` runs ``snella-seg preflight`` on stand-ins for data and weights
(``stand_ins.py``); each config in a process of its own, what they find into a file that the table
reads (``--records``). Names are of the model, as ``swin_t``; none means all. What the file holds is
not done again, so that a run goes on where it was cut off.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from stand_ins import write_datasets, write_weights
from torch import nn

import snella_seg.register  # noqa: F401
from snella_seg.configs import own, replace_type, tool, type_name
from snella_seg.inject import list_adapters
from snella_seg.loading.files import write_text

CONFIGS = Path(own("_base_/snella_backbone.py")[0]).parents[1]
#: Data set, as configs are named, -> its heading; the first is the one that is measured.
DATASETS = {
    "ade20k": "ADE20K",
    "pascal_context": "PC-59",
    "pascal_context_60": "PC-60",
    "cityscapes": "Cityscapes",
}
HEADS = {"UPerHead": "UperNet", "LinearHead": "linear", "SegformerHead": "SegFormer"}
RECORDS = Path(__file__).parents[1] / "docs" / "benchmarks" / "zoo.json"
#: Seconds after which a measurement is given up.
LIMIT = 240
_linspace = torch.linspace


def zoo() -> dict[str, list[str]]:
    """``family/head_model`` -> the data sets that it has configs for."""
    found: dict[str, list[str]] = {}
    for path in sorted(CONFIGS.glob("*/snella_*.py")):
        name = f"{path.parent.name}/{path.stem}"
        for data in sorted(DATASETS, key=len, reverse=True):
            if name.endswith(f"_{data}") and path.parent.name != "shift":
                found.setdefault(name.removesuffix(f"_{data}"), []).append(data)
                break
    return found


def load(name: str | Path) -> Config:
    """A config of ours whose model needs no several processes."""
    cfg = Config.fromfile(CONFIGS / name)
    replace_type(cfg.model, "SyncBN", "BN")
    return cfg


def build(cfg: Config) -> nn.Module:
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model)


@contextmanager
def on_meta() -> Iterator[None]:
    """Parameters have shapes only; drop-path rates, read as numbers, are made all the same."""
    torch.linspace = lambda *args, **options: _linspace(*args, **{**options, "device": "cpu"})
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.linspace = _linspace


def batch(size: tuple[int, int], count: int = 1) -> dict:
    """Images of noise of one size, with labels of two classes."""
    samples = []
    for _ in range(count):
        sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 2, (1, *size)))
        samples.append(sample)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for _ in range(count)]
    return dict(inputs=images, data_samples=samples)


def step(name: str) -> dict[str, float]:
    """GiB at the peak and seconds of the second training step on one image, in this process."""
    cfg = load(f"{name}_ade20k.py")
    for norms in ("decode_head", "auxiliary_head"):  # of one image, some maps are single pixels
        if cfg.model.get(norms):
            replace_type(cfg.model[norms], "BN", "GN")
            _set_groups(cfg.model[norms])
    model = build(cfg)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    data = batch(tuple(cfg.model.data_preprocessor["size"]))
    for _ in range(2):
        start = time.perf_counter()
        losses = model.train_step(data, wrapper)
    if not torch.isfinite(losses["loss"]):
        raise ValueError(f"{name}: the loss is {losses['loss']}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return dict(seconds=time.perf_counter() - start, gib=peak)


def _set_groups(node: dict) -> None:
    for value in (node, *(v for v in node.values() if isinstance(v, dict))):
        if type_name(value) == "GN":
            value["num_groups"] = 1


def check(name: str) -> dict[str, bool | str]:
    """Whether preflight passes, with all labels read and no iteration, or what it says."""
    cfg = load(f"{name}_ade20k.py")
    with tempfile.TemporaryDirectory() as folder:
        write_datasets(cfg, Path(folder))
        write_weights(build(cfg).backbone, Path(folder))
        done = subprocess.run(
            [sys.executable, tool("preflight.py"), CONFIGS / f"{name}_ade20k.py", "--iters", "0"],
            cwd=folder,
            env={**os.environ, "TORCH_HOME": f"{folder}/torch"},
            capture_output=True,
            text=True,
        )
    said = (done.stdout + done.stderr).strip()
    return {"passed": done.returncode == 0, **({"said": said[-2000:]} if done.returncode else {})}


def measure(names: list[str], records: Path, what: str, limit: int) -> None:
    """Measure or check configs, each in a process of its own that is given up after a while."""
    for name in names:
        known = read(records)
        if what in known.get(name, {}):
            continue
        command = [sys.executable, __file__, f"--{what}-one", name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
            lines = done.stdout.strip().splitlines()
            found = (
                json.loads(lines[-1]) if done.returncode == 0 else {"failed": done.stderr[-500:]}
            )
        except subprocess.TimeoutExpired:
            found = {"beyond": limit}
        print(name, found, file=sys.stderr, flush=True)
        known = read(records)  # what another process has added meanwhile
        known.setdefault(name, {})[what] = found
        records.parent.mkdir(parents=True, exist_ok=True)
        write_text(records, json.dumps(known, indent=1) + "\n")


def read(records: Path) -> dict[str, dict]:
    """What was found so far, by name."""
    return json.loads(records.read_text()) if records.exists() else {}


def row(name: str, data: list[str], measured: dict) -> str:
    """A model's row of the table; counts are those of its ADE20K config."""
    cfg = load(f"{name}_ade20k.py")
    with on_meta():
        model = build(cfg)
    adapted = sum(adapter.size for adapter in list_adapters(model).values())
    whole = sum(p.numel() for p in model.backbone.parameters())
    tuned = sum(p.numel() for p in model.backbone.parameters() if p.requires_grad)
    heads = sum(p.numel() for p in model.parameters() if p.requires_grad) - tuned
    share = 1 - cfg.custom_hooks[0].target_sparsity
    step = measured.get("step", {})
    base = whole - sum(p.numel() for a in list_adapters(model).values() for p in a.parameters())
    cells = [
        f"`{name}`",
        HEADS[type_name(cfg.model.decode_head)],
        ", ".join(DATASETS[d] for d in DATASETS if d in data),
        f"{base / 1e6:.1f}",
        f"{tuned / 1e6:.2f}",
        f"{heads / 1e6:.2f}",
        f"{100 * share * adapted / base:.0f} %",
        f"{step['gib']:.1f}" if "gib" in step else "-",
        f"{step['seconds']:.1f}" if "seconds" in step else "-",
        {True: "yes", False: "no"}.get(measured.get("preflight", {}).get("passed"), "-"),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", dest="step", nargs="*", metavar="NAME")
    parser.add_argument("--preflight", nargs="*", metavar="NAME")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--limit", type=int, default=LIMIT, help="seconds for each config")
    parser.add_argument("--step-one", help=argparse.SUPPRESS)
    parser.add_argument("--preflight-one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    MMLogger.get_current_instance().setLevel("WARNING")
    if args.step_one or args.preflight_one:
        print(json.dumps(step(args.step_one) if args.step_one else check(args.preflight_one)))
        return
    configs = zoo()
    for what in ("step", "preflight"):
        if (wanted := getattr(args, what)) is not None:
            names = [n for w in wanted or [""] for n in configs if n.endswith(w)]
            measure(names, args.records, what, args.limit)
    if args.step is not None or args.preflight is not None:
        return
    known = read(args.records)
    columns = ("config", "head", "data sets", "backbone, M", "learnable in it, M", "heads, M")
    columns += ("non-zero in the end", "GiB", "s", "preflight")
    print(f"| {' | '.join(columns)} |\n{'|---' * 3}{'|---:' * 6}|---|")
    for name, data in configs.items():
        print(row(name, data, known.get(name, {})), flush=True)


if __name__ == "__main__":
    main()
