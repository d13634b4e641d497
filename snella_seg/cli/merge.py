"""Merge a task into a stock model: ``merge.py CONFIG CHECKPOINT OUT_DIR``.

Writes ``OUT_DIR/merged.pth`` and ``OUT_DIR/merged.py``, a stock checkpoint and a stock config which
mmseg's own tools run where snella_seg is not installed, and proves it on an image: the logits of
the stock model against those of the adapted one. With ``--backbone`` only the bare backbone is
written, under mmseg's or timm's names.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config

from ..artifacts import half_precision_loss, merged_backbone, merged_segmentor, stock_config
from ..configs import load_config
from ..loading.files import atomic_write
from ..loading.names import mmseg_to_timm
from ..models import build_segmentor, find_wrapper, logits
from .failures import plain_errors
from .reading import refuse_without_adapters

TOLERANCE = 1e-4  # of the largest logit: attention sums in another order in the stock model


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="config that the checkpoint was trained with")
    parser.add_argument("checkpoint", help="a .pth file or an adapter file")
    parser.add_argument("out_dir", type=Path, help="folder for what is written")
    parser.add_argument("--backbone", choices=["mmseg", "timm"], help="the bare backbone only")
    parser.add_argument("--image", help="image to prove it on (default noise)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], default="float32",
        help="of the weights written",
    )  # fmt: skip
    parser.add_argument(
        "--force", action="store_true", help="write half precision although deltas are lost"
    )
    return parser.parse_args(argv)


def refuse_half_precision(wrapper, dtype: torch.dtype, force: bool) -> None:
    """Measure what half precision does to the deltas, and say so."""
    losses = list(half_precision_loss(wrapper, dtype))
    if not losses:
        return
    error = sum(loss for _, loss, _ in losses) / len(losses)
    same = sum(share for *_, share in losses) / len(losses)
    name, worst, _ = max(losses, key=lambda loss: loss[1])
    message = (
        f"in {str(dtype).removeprefix('torch.')} the merged weights lose {error:.0%} of their "
        f"deltas (norm, mean over {len(losses)} weights; {worst:.0%} in {name}), and {same:.0%} of "
        "the changed weights are those of the base again"
    )
    if not force:
        raise ValueError(f"{message}. Write float32, or give --force")
    print(f"warning: {message}")


def write_weights(state: dict, path: Path, dtype: torch.dtype, meta: dict | None = None) -> None:
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    with atomic_write(path) as partial:
        torch.save({"meta": meta or {}, "state_dict": state}, partial)
    print(f"{path}: {len(state)} tensors, {path.stat().st_size / 1e6:.1f} MB")


def prove(model, out_dir: Path, image: str | None, exact: bool) -> None:
    """Compare the logits of the stock model with those of the adapted one.

    Raises:
        RuntimeError: when they differ by more than rounding, in single precision.
    """
    _, wrapper = find_wrapper(model)
    size = (model.cfg.model.get("data_preprocessor") or {}).get("size") or (512, 512)
    checkpoint = str(out_dir / "merged.pth")
    twin = build_segmentor(Config.fromfile(out_dir / "merged.py"), checkpoint)
    found = logits(twin, image, size[0])
    results = {"as trained": logits(model, image, size[0])}
    wrapper.restore_modules()  # attention as in the stock model, which sums in another order
    results["with stock attention"] = logits(model, image, size[0])
    wrapper.optimize_modules()
    for how, expected in results.items():
        difference = float((found - expected).abs().max())
        largest = float(expected.abs().max())
        same = float((found.argmax(1) == expected.argmax(1)).float().mean())
        print(
            f"stock model against SNELLA {how}: largest difference of logits {difference:.2e} "
            f"(largest logit {largest:.2f}), same class on {same:.2%} of the map"
        )
        if exact and not difference <= TOLERANCE * max(largest, 1.0):  # nor NaN
            Path(checkpoint).unlink()
            raise RuntimeError(f"{checkpoint} did not compute what the adapted model computes")


@plain_errors
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    cfg = load_config(args.config)
    dtype = getattr(torch, args.dtype)
    stock = None if args.backbone else stock_config(cfg)
    refuse_without_adapters(cfg, args.checkpoint)
    model = build_segmentor(cfg, args.checkpoint)
    _, wrapper = find_wrapper(model)
    if dtype != torch.float32:
        refuse_half_precision(wrapper, dtype, args.force)
    if args.backbone:
        state = merged_backbone(wrapper)
        if args.backbone == "timm":
            state = mmseg_to_timm(state)
        write_weights(state, args.out_dir / f"backbone_{args.backbone}.pth", dtype)
        return
    meta = dict(dataset_meta=model.dataset_meta) if model.dataset_meta else {}
    write_weights(merged_segmentor(model), args.out_dir / "merged.pth", dtype, meta)
    with atomic_write(args.out_dir / "merged.py") as partial:
        partial.write_text(stock.pretty_text)
    print(f"{args.out_dir / 'merged.py'}: stock config")
    prove(model, args.out_dir, args.image, exact=dtype == torch.float32)
