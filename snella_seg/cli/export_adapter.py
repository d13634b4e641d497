"""Write a task as an adapter file: ``export_adapter.py CONFIG CHECKPOINT OUT.safetensors``.

It holds the adapters, what else was trained in the backbone, the heads, class names, and the name
and digest of the base. ``tools/test.py CONFIG OUT.safetensors`` takes it for a checkpoint.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..artifacts import save_adapter
from ..configs import load_config
from ..models import build_segmentor
from .failures import plain_errors
from .reading import refuse_without_adapters, require_suffix


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="config that the checkpoint was trained with")
    parser.add_argument("checkpoint", help="a .pth file")
    parser.add_argument("out", type=Path, help="the adapter file to write (.safetensors)")
    parser.add_argument("--no-heads", action="store_true", help="leave the heads out")
    return parser.parse_args(argv)


@plain_errors
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    require_suffix(args.out, ".safetensors")
    cfg = load_config(args.config)
    refuse_without_adapters(cfg, args.checkpoint)
    model = build_segmentor(cfg, args.checkpoint)
    file = save_adapter(model, args.out, heads=not args.no_heads)
    size = args.out.stat().st_size / 1e6
    print(f"{args.out}: {len(file.info['matrices'])} matrices, {size:.2f} MB")
