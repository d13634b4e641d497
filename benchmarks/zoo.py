"""What each config of the zoo costs: the table of configs/README.md.

``python benchmarks/zoo.py`` counts, on the meta device, and prints the table as Markdown.
``python benchmarks/zoo.py --measure NAME ...`` takes two training steps on one image of noise,
each config in a process of its own, and adds memory and seconds of the second step to a file that
the table reads (``--records``). Names are of the model, as ``swin_t``; none means all.
"""

import argparse
import json
import resource
import subprocess
import sys
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
from torch import nn

import snella_seg.register  # noqa: F401
from snella_seg.configs import own, replace_type, type_name
from snella_seg.inject import list_adapters

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


def measure(names: list[str], records: Path) -> None:
    """Measure configs, each in a process of its own; one that fails or takes too long has none."""
    known = json.loads(records.read_text()) if records.exists() else {}
    for name in names:
        command = [sys.executable, __file__, "--step", name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
            lines = done.stdout.strip().splitlines()
            known[name] = json.loads(lines[-1]) if done.returncode == 0 else {"failed": True}
        except subprocess.TimeoutExpired:
            known[name] = {"beyond": LIMIT}
        print(name, known[name], file=sys.stderr, flush=True)
        records.parent.mkdir(parents=True, exist_ok=True)
        records.write_text(json.dumps(known, indent=1) + "\n")


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
    base = whole - sum(p.numel() for a in list_adapters(model).values() for p in a.parameters())
    cells = [
        f"`{name}`",
        HEADS[type_name(cfg.model.decode_head)],
        ", ".join(DATASETS[d] for d in DATASETS if d in data),
        f"{base / 1e6:.1f}",
        f"{tuned / 1e6:.2f}",
        f"{heads / 1e6:.2f}",
        f"{100 * share * adapted / base:.0f} %",
        f"{measured['gib']:.1f}" if "gib" in measured else "-",
        f"{measured['seconds']:.1f}" if "seconds" in measured else "-",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", nargs="*", metavar="NAME")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    MMLogger.get_current_instance().setLevel("WARNING")
    if args.step:
        print(json.dumps(step(args.step)))
        return
    configs = zoo()
    if args.measure is not None:
        wanted = args.measure or [""]
        measure([n for n in configs if any(n.endswith(w) for w in wanted)], args.records)
        return
    known = json.loads(args.records.read_text()) if args.records.exists() else {}
    columns = ("config", "head", "data sets", "backbone, M", "learnable in it, M", "heads, M")
    columns += ("non-zero in the end", "GiB", "s")
    print(f"| {' | '.join(columns)} |\n{'|---' * 3}{'|---:' * 6}|")
    for name, data in configs.items():
        print(row(name, data, known.get(name, {})), flush=True)


if __name__ == "__main__":
    main()
