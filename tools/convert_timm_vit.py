"""Rename the weights of a timm ViT to mmseg's: ``convert_timm_vit.py IN.pth OUT.pth``.

SnellaBackbone does this by itself when it loads; the tool is for use elsewhere.
"""

import argparse
import os
import sys
from pathlib import Path

import torch

from snella_seg.convert import timm_vit_to_mmseg


def read_weights(path: Path) -> dict:
    """Read a .pth or .safetensors file of named tensors."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):
        if isinstance(state.get(key), dict):
            return state[key]
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="weights under timm's names")
    parser.add_argument("target", type=Path, help="file to write, for mmseg")
    args = parser.parse_args()
    if not args.source.is_file():
        sys.exit(f"error: weights not found: {args.source}")
    try:
        state = read_weights(args.source)
    except Exception as error:  # every kind of damage has its own
        sys.exit(
            f"error: cannot read weights from {args.source} ({type(error).__name__}); give a .pth "
            "file of a dict of tensors, or a .safetensors file"
        )
    try:
        converted = timm_vit_to_mmseg(state)
    except ValueError as error:
        sys.exit(f"error: {error}")
    args.target.parent.mkdir(parents=True, exist_ok=True)
    partial = args.target.with_name(args.target.name + ".partial")
    torch.save({"state_dict": converted}, partial)
    os.replace(partial, args.target)
    print(f"{len(converted)} tensors written to {args.target}")


if __name__ == "__main__":
    main()
