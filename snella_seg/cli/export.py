"""Export a merged model to ONNX or torch.export: ``export.py CONFIG CHECKPOINT OUT.onnx``.

The file takes images and gives logits or labels of their pixels, without snella_seg and mmseg. It
is compared with the model, by onnxruntime or torch, before it is put in its place.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..artifacts.exporting import ExportReport, check_target, export_segmentor
from ..configs import load_config
from ..models import build_segmentor
from .failures import plain_errors
from .reading import add_overrides, refuse_without_adapters


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="config that the checkpoint was trained with, or merged.py")
    parser.add_argument("checkpoint", help="a .pth file or an adapter file")
    parser.add_argument("out", type=Path, help="the file to write, .onnx or .pt2")
    parser.add_argument("--image", help="image to prove it on (default noise)")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="fix the size of images (default any, where the backbone can)",
    )
    parser.add_argument("--labels", action="store_true", help="give labels instead of logits")
    parser.add_argument(
        "--no-normalise",
        dest="normalise",
        action="store_false",
        help="take images that are normalised, as by the config's data_preprocessor",
    )
    parser.add_argument("--opset", type=int, help="of ONNX (default what torch recommends)")
    add_overrides(parser)
    return parser.parse_args(argv)


@plain_errors
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    check_target(args.out)
    cfg = load_config(args.config, args.cfg_options)
    refuse_without_adapters(cfg, args.checkpoint)
    model = build_segmentor(cfg, args.checkpoint)
    options = dict(labels=args.labels, normalise=args.normalise, opset=args.opset)
    report = export_segmentor(model, args.out, args.image, args.size, **options)
    print("\n".join(told(report)))


def told(report: ExportReport) -> list[str]:
    """What was written and what it was compared with, a line each."""
    info = report.info
    lines = [f"not free: {freedom}, since {reason}" for freedom, reason in report.refused]
    sizes = f"multiples of {info['step']}"
    if info["size"]:
        sizes = f"{info['size'][0]}x{info['size'][1]}"
    kind = f"ONNX, opset {info['opset']}" if "opset" in info else "torch.export"
    lines.append(
        f"{report.path}: {kind}, {report.path.stat().st_size / 1e6:.1f} MB; "
        f"{info['input']['bands']} bands, {info['input']['values']}; "
        f"{'1 image' if info['varies'] == 'nothing' else 'any batch'}, height and width {sizes}"
    )
    for proof in report.proofs:
        logits = ""
        if proof.difference is not None:
            logits = (
                f"largest difference of logits {proof.difference:.2e} (largest logit "
                f"{proof.largest:.2f}), "
            )
        shape = "x".join(map(str, proof.shape))
        lines.append(f"against the model, {shape}: {logits}same class on {proof.same:.2%}")
    return lines
