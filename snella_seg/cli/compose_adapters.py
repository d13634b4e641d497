"""Compare two tasks, or put them together: ``compose_adapters.py FIRST SECOND``.

Prints for every matrix how many weights both tasks change (Jaccard index). With ``--out`` the sum
or the average of their deltas is merged into a stock checkpoint with the first file's heads.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config

from ..artifacts import (
    adapter_overlap,
    combine_adapters,
    fold_linear_heads,
    read_adapter,
    stock_config,
)
from ..artifacts.config_trust import refuse_unknown_types
from ..loading.files import atomic_write
from ..models import build_segmentor, find_wrapper
from .failures import plain_errors


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("first", help="an adapter file")
    parser.add_argument("second", help="another one of the same base")
    parser.add_argument("--out", type=Path, help="folder for merged.pth and merged.py")
    parser.add_argument(
        "--weights", type=float, nargs=2, default=[0.5, 0.5], metavar=("A", "B"),
        help="of the two deltas in the sum (default 0.5 0.5, the average; 1 1 adds them)",
    )  # fmt: skip
    parser.add_argument("--base", help="base weights (default where the first file says)")
    return parser.parse_args(argv)


@plain_errors
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if not all(math.isfinite(weight) for weight in args.weights):
        raise ValueError(f"--weights must be finite numbers, got {args.weights}")
    files = [read_adapter(args.first), read_adapter(args.second)]
    show_overlap(adapter_overlap(*files))
    if args.out:
        combine(files, args)


def show_overlap(counts: dict[str, tuple[int, int]]) -> None:
    width = max(map(len, counts), default=0)
    print(f"{'matrix':<{width}}  {'both':>12}  {'either':>12}  Jaccard")
    total = [sum(count[i] for count in counts.values()) for i in range(2)]
    for name, (both, either) in [*counts.items(), ("all", total)]:
        share = both / either if either else 0.0
        print(f"{name:<{width}}  {both:>12,}  {either:>12,}  {share:.4f}")


def combine(files, args) -> None:
    info = files[0].info
    if not info["model"] or not info["heads"]:
        raise ValueError(f"{args.first} holds no heads; export it anew by tools/export_adapter.py")
    refuse_unknown_types([info["model"], info["test_pipeline"]], args.first)
    cfg = Config(dict(model=info["model"], test_pipeline=info["test_pipeline"]))
    bare = Config(cfg.to_dict())
    bare.model.backbone = files[0].bare_backbone(args.base)
    model = build_segmentor(bare)
    prefix, wrapper = find_wrapper(model)
    backbone = combine_adapters(wrapper, files, args.weights)
    state = {k: v for k, v in files[0].tensors.items() if not k.startswith(prefix)}
    state.update({prefix + name: value for name, value in backbone.items()})
    state = fold_linear_heads(state, model)
    path = args.out / "merged.pth"
    with atomic_write(path) as partial:
        torch.save(dict(meta=dict(dataset_meta=info["metainfo"]), state_dict=state), partial)
    with atomic_write(args.out / "merged.py") as partial:
        partial.write_text(stock_config(cfg).pretty_text)
    build_segmentor(Config.fromfile(args.out / "merged.py"), str(path))  # it loads
    print(f"\n{path}: {args.weights[0]} x {args.first} + {args.weights[1]} x {args.second}")
