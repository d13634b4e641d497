"""Sizes of what a task leaves on disk: ``python benchmarks/sizes.py``.

ViT-T, ViT-B and Swin-B with UperNet (512 channels, 150 classes, or as the CamVid config has it for
ViT-T), random values, AdamW's state as after a step. All files are written as a run or a tool
writes them, measured and deleted. Results go to ``docs/benchmarks/sizes.md``.
"""

import argparse
import copy
import tempfile
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from report import environment

import snella_seg.register  # noqa: F401
from snella_seg.artifacts import (
    find_wrapper,
    make_delta,
    merged_backbone,
    merged_segmentor,
    save_adapter,
    save_delta,
    stock_config,
    strip_frozen,
)
from snella_seg.artifacts.sparse_delta import position_bytes
from snella_seg.budget.importances import ImportanceTracker
from snella_seg.cli.machine import fit_to_machine
from snella_seg.configs import load_config, own
from snella_seg.inject import is_adapter_key, list_adapters
from snella_seg.loading.files import atomic_write

CONFIGS = {
    "ViT-T (64-channel heads)": "snella_upernet_camvid.py",
    "ViT-B (512-channel heads)": "snella_upernet_ade20k.py",
    "Swin-B (512-channel heads)": "snella_upernet_swin_ade20k.py",
}
SPARSITIES = (0.8, 0.95, 0.99)
OUT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "sizes.md"
INTRO = """# Sizes on disk, MB (1e6 bytes)

Rank 32 in 2 heads, sparsity 0.8 unless said. *With optimizer*: AdamW's two averages of all that
trains, and the averages of SparsityAllocationHook (two more of the factors). *Without heads*:
backbone only. In brackets: how many times smaller than full fine-tuning's file of the same kind.
"""


def build(config: str, folder: Path):
    """A config's segmentor, its base in a file, factors and all else random."""
    cfg = load_config(own(config)[0])
    fit_to_machine(cfg, "none")
    cfg.model.pretrained = None
    cfg.model.backbone.backbone.update(init_cfg=None, pretrained=None)
    init_default_scope("mmseg")
    torch.manual_seed(0)
    stock = MODELS.build(copy.deepcopy(cfg.model.backbone.backbone))
    stock.init_weights()
    torch.save(stock.state_dict(), folder / "base.pth")
    cfg.model.backbone.base_checkpoint = str(folder / "base.pth")
    model = MODELS.build(cfg.model)
    model.backbone.init_weights()
    model.cfg = cfg
    for adapter in list_adapters(model).values():
        adapter.set_num_nonzero(round(0.2 * adapter.size))
    return model.eval()


def with_optimizer(model: torch.nn.Module) -> dict:
    """A checkpoint of a model with AdamW's state, but for the state dict's slimming."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0)
    for parameter in trained:
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    optimizer.zero_grad()
    return dict(state_dict=model.state_dict(), optimizer=optimizer.state_dict())


def size(checkpoint: dict, folder: Path) -> float:
    path = folder / "file.pth"
    torch.save(checkpoint, path)
    megabytes = path.stat().st_size / 1e6
    path.unlink()
    return megabytes


def backbone_only(checkpoint: dict, model) -> dict:
    """A checkpoint without heads and their optimizer state."""
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    inside = {i for i, name in enumerate(trained) if name.startswith("backbone.")}
    state = {k: v for k, v in checkpoint["state_dict"].items() if k.startswith("backbone.")}
    kept = {i: v for i, v in checkpoint["optimizer"]["state"].items() if i in inside}
    return dict(checkpoint, state_dict=state, optimizer=dict(state=kept))


def pth_sizes(model, folder: Path) -> dict[str, float]:
    """Full fine-tuning's checkpoints and ours, whole and slim."""
    stock = Config(stock_config(model.cfg).to_dict())
    full = with_optimizer(MODELS.build(stock.model))
    full_model = MODELS.build(stock.model)
    rows = {
        "full fine-tuning, with optimizer": size(full, folder),
        "full fine-tuning, with optimizer, without heads": size(
            backbone_only(full, full_model), folder
        ),
        "full fine-tuning, weights": size(dict(state_dict=full["state_dict"]), folder),
    }
    bare = {k: v for k, v in full["state_dict"].items() if k.startswith("backbone.")}
    rows["full fine-tuning, weights, without heads"] = size(dict(state_dict=bare), folder)
    del full, full_model
    ours = with_optimizer(model)
    ours["snella"] = ImportanceTracker(model).state_dict()
    rows["SNELLA, whole, with optimizer"] = size(ours, folder)
    slim = dict(ours, state_dict=dict(ours["state_dict"]))
    assert strip_frozen(slim["state_dict"], model)
    rows["SNELLA, slim, with optimizer"] = size(slim, folder)
    rows["SNELLA, slim, with optimizer, without heads"] = size(backbone_only(slim, model), folder)
    rows["SNELLA, slim, weights"] = size(dict(state_dict=slim["state_dict"]), folder)
    return rows


def file_sizes(model, folder: Path) -> dict[str, float]:
    """Adapter files, merged checkpoint and sparse deltas."""
    path, rows = folder / "file.safetensors", {}
    for heads in (True, False):
        save_adapter(model, path, heads=heads)
        rows[f"adapter file, with{'' if heads else 'out'} heads"] = path.stat().st_size / 1e6
    rows["merged stock checkpoint"] = size(dict(state_dict=merged_segmentor(model)), folder)
    wrapper = find_wrapper(model)[1]
    base = {
        k: v.detach().clone()
        for k, v in wrapper.backbone.state_dict().items()
        if not is_adapter_key(k)
    }
    for sparsity in SPARSITIES:
        for adapter in list_adapters(model).values():
            adapter.set_num_nonzero(round((1 - sparsity) * adapter.size))
        delta = make_delta(base, merged_backbone(wrapper))
        save_delta(delta, path)
        rows[f"sparse delta, sparsity {sparsity}"] = path.stat().st_size / 1e6
        least = sum(bound for *_, bound in position_bytes(delta)) / 1e6
        values = sum(v.numel() * v.element_size() for v in delta.changes.values()) / 1e6
        rows[f"sparse delta, sparsity {sparsity}, least possible"] = values + least
    return rows


def table(results: dict[str, dict[str, float]]) -> str:
    """Markdown: a row for each file, a column for each model, ratios to full fine-tuning."""
    against = {
        "with optimizer, without heads": "full fine-tuning, with optimizer, without heads",
        "with optimizer": "full fine-tuning, with optimizer",
        "without heads": "full fine-tuning, weights, without heads",
        "weights": "full fine-tuning, weights",
        "with heads": "full fine-tuning, weights",
    }
    lines = [f"| | {' | '.join(results)} |", "|---" * (len(results) + 1) + "|"]
    for name in next(iter(results.values())):
        cells = []
        reference = next((full for end, full in against.items() if name.endswith(end)), None)
        for rows in results.values():
            cell = f"{rows[name]:.2f}"
            if reference and not name.startswith("full"):
                cell += f" ({rows[reference] / rows[name]:.1f}x)"
            cells.append(cell)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--models", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    args = parser.parse_args()
    results = {}
    for name in args.models:
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            model = build(CONFIGS[name], Path(folder))
            results[name] = pth_sizes(model, Path(folder)) | file_sizes(model, Path(folder))
    text = f"{INTRO}\n{table(results)}\n\n{environment_line()}\n"
    with atomic_write(args.out) as partial:
        partial.write_text(text)
    print(text)


def environment_line() -> str:
    return ". ".join(
        f"{value}" for key, value in environment(torch.device("cpu")).items() if key != "hardware"
    )


if __name__ == "__main__":
    main()
