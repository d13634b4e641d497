"""Show what is in an adapter file or a sparse delta: ``inspect_adapter.py FILE``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..artifacts import AdapterFile, load_delta, read_adapter
from ..artifacts.adapter_file import FORCEABLE
from ..artifacts.sparse_delta import FORMAT as DELTA
from ..loading.files import load_safetensors
from .failures import plain_errors


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="an adapter file or a sparse delta (.safetensors)")
    parser.add_argument(
        "--force", nargs="+", choices=FORCEABLE, default=[], help="pass over what does not fit"
    )
    return parser.parse_args(argv)


@plain_errors
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    metadata = load_safetensors(args.file)[1]
    show = show_delta if metadata.get("format") == DELTA else show_adapter
    show(args.file, args.force)


def show_adapter(path: Path, force: list[str]) -> None:
    file = read_adapter(path, force)
    info, header = file.info, file.info["header"]
    inside = file.info["prefix"]
    heads = sum(v.numel() for k, v in file.tensors.items() if not k.startswith(inside))
    classes = (info["metainfo"] or {}).get("classes") or ()
    lines = {
        "file": f"{path}, {path.stat().st_size / 1e6:.3f} MB, format {header['version']}",
        "base": f"{header['base']['source']}, {len(header['base']['weights'])} frozen weights, "
        f"{base_digest(header['base']['weights'])}",
        "backbone": header["backbone"]["type"],
        "adapters": ", ".join(f"{k} {v}" for k, v in header["adapter"].items()),
        "also trained": ", ".join(file.extras()) or "nothing",
        "heads": f"{heads:,} values" if info["heads"] else "not in the file",
        "classes": f"{len(classes)}: {', '.join(map(str, classes[:8]))}"
        + (" ..." if len(classes) > 8 else ""),
        "made with": ", ".join(f"{k} {v}" for k, v in info["packages"].items()),
    }
    print("\n".join(f"{key:<13} {value}" for key, value in lines.items()))
    print("\n" + matrices(file))


def base_digest(weights: dict[str, str]) -> str:
    """One short digest of all frozen weights, to compare by eye."""
    import hashlib

    return hashlib.sha256(repr(sorted(weights.items())).encode()).hexdigest()[:16]


def matrices(file: AdapterFile) -> str:
    """A row for each matrix: shape, rank, sparsity, norm of the delta."""
    rows = [("matrix", "shape", "rank", "non-zero", "sparsity", "norm")]
    nonzero = size = 0
    for name, adapter in file.adapters().items():
        nonzero, size = nonzero + adapter.num_nonzero, size + adapter.size
        rows.append(
            (
                name,
                f"{adapter.out_features}x{adapter.in_features}",
                f"{adapter.rank}",
                f"{adapter.num_nonzero:,}",
                f"{adapter.current_sparsity():.4f}",
                f"{float(adapter.delta_weight().norm()):.4f}",
            )
        )
    total = f"{1 - nonzero / size:.4f}" if size else "-"
    rows.append(("all", f"{size:,}", "", f"{nonzero:,}", total, ""))
    return table(rows)


def show_delta(path: Path, force: list[str]) -> None:
    delta, info = load_delta(path)
    print(f"file          {path}, {path.stat().st_size / 1e6:.3f} MB, sparse delta")
    print(f"base          {info.get('source')}, {base_digest(delta.base)}")
    print(f"backbone      {(info.get('backbone') or {}).get('type')}\n")
    rows = [("weight", "shape", "changed", "positions coded as")]
    for name, shape in delta.shapes.items():
        changed, total = len(delta.positions[name]), 1
        for side in shape:
            total *= side
        rows.append(
            (name, "x".join(map(str, shape)), f"{changed:,} ({changed / total:.1%})",
             info["codings"][name])
        )  # fmt: skip
    print(table(rows))


def table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
