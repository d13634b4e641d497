"""Write only the changed weights of a backbone: ``export_delta.py CONFIG CHECKPOINT OUT``.

``snella_seg.artifacts.apply_delta`` adds them to the base, ``remove_delta`` takes them off again,
both to the very bits. The base is read from where the config says.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..artifacts import make_delta, merged_backbone, save_delta
from ..artifacts.sparse_delta import position_bytes
from ..configs import load_config
from ..inject import base_state
from ..models import build_segmentor, find_wrapper, task_state
from .failures import plain_errors
from .reading import refuse_without_adapters, require_suffix


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="config that the checkpoint was trained with")
    parser.add_argument("checkpoint", help="a .pth file or an adapter file")
    parser.add_argument("out", type=Path, help="the file to write (.safetensors)")
    return parser.parse_args(argv)


@plain_errors
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    require_suffix(args.out, ".safetensors")
    cfg = load_config(args.config)
    refuse_without_adapters(cfg, args.checkpoint)
    untrained = build_segmentor(cfg)
    wrapper = find_wrapper(untrained)[1]
    if wrapper.base_source is None:
        raise ValueError(
            "the config names no base weights to compare with; set model.backbone.base_checkpoint"
        )
    source = wrapper.base_source
    base = {name: value.detach().clone() for name, value in base_state(wrapper.backbone).items()}
    model = build_segmentor(cfg, args.checkpoint)
    prefix, wrapper = find_wrapper(model)
    delta = make_delta(base, merged_backbone(wrapper))
    save_delta(delta, args.out, source=source, backbone=wrapper.inner_config)
    report(delta, args.out, task_state(model), prefix)


def report(delta, path: Path, task: dict, prefix: str) -> None:
    """Compare the file's size with that of the factors and with the least that is possible."""
    factors = sum(v.numel() * v.element_size() for k, v in task.items() if k.startswith(prefix))
    rows = list(position_bytes(delta))
    coded, bound = sum(row[1] for row in rows), sum(row[2] for row in rows)
    values = sum(v.numel() * v.element_size() for v in delta.changes.values())
    print(f"{path}: {delta.num_changed:,} changed weights in {len(rows)} tensors")
    for what, size in (
        ("file", path.stat().st_size),
        ("values", values),
        ("positions as coded", coded),
        ("positions, least possible", bound),
        ("the same task as factors", factors),
    ):
        print(f"  {what:<26} {size / 1e6:10.3f} MB")
