"""Which families of backbones work, check by check: the table of docs/backbones.md.

``python benchmarks/backbones.py`` builds each at toy size and prints the table as Markdown, and
under it why files of some are not free; names of families print their rows alone.
"""

import copy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules
from tiny_backbones import OTHER_SIZE, TINY
from torch import Tensor, nn

import snella_seg.register  # noqa: F401
from snella_seg.artifacts import export_segmentor, merge_adapters
from snella_seg.inject import list_adapters
from snella_seg.loading import CheckpointError
from snella_seg.models import SnellaBackbone, describe_backbone, strip_frozen
from snella_seg.models.image_size import with_timm_options

SIZE = (64, 64)


def build(name: str, **options) -> SnellaBackbone:
    """The tiny backbone of a family, wrapped; scales that start next to zero are one."""
    torch.manual_seed(0)
    options = {"adapter": dict(rank=4), **options}
    inner = copy.deepcopy(TINY[name])
    wrapper = MODELS.build(ConfigDict(type="SnellaBackbone", backbone=inner, **options)).eval()
    with torch.no_grad():
        for key, parameter in wrapper.backbone.named_parameters():
            if parameter.ndim == 1 and key.endswith(("weight", "gamma", "gamma_1", "gamma_2")):
                parameter.fill_(1.0)
        for adapter in list_adapters(wrapper).values():
            for factor in adapter.factors if options["adapter"].get("rank") else ():
                factor.normal_(std=1.0)
    return wrapper


def image(size: tuple[int, int] = SIZE) -> Tensor:
    """Two images (2, 3, H, W)."""
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(5))


def all_is_adapted(name: str) -> None:
    """Blocks are found, and all that they leave out has a reason."""
    coverage = describe_backbone(build(name)).coverage
    assert coverage.blocks and coverage.matrices
    assert all(left.reason for left in coverage.left_out), coverage.line()


def every_adapter_acts(name: str) -> None:
    """Each adapter moves the output, and each of its factors gets a gradient."""
    wrapper = build(name)
    x = image()
    sum(out.square().mean() for out in wrapper(x)).backward()
    for matrix, adapter in list_adapters(wrapper).items():
        assert all(factor.grad.abs().max() > 0 for factor in adapter.factors), matrix
    with torch.no_grad():
        before = wrapper(x)
        for matrix, adapter in list_adapters(wrapper).items():
            kept = adapter.in_factors.clone()
            adapter.in_factors.zero_()
            moved = max((a - b).abs().max() for a, b in zip(before, wrapper(x), strict=True))
            assert moved > 0, matrix
            adapter.in_factors.copy_(kept)


def other_sizes(name: str) -> None:
    """Forward and backward on images that are neither square nor multiples of the patch."""
    wrapper = build(name)
    outputs = wrapper(image(OTHER_SIZE))
    sum(out.square().mean() for out in outputs).backward()
    assert all(out.shape[2] < out.shape[3] for out in outputs)


def merges(name: str) -> None:
    """Merged, it is the stock backbone under stock names, and computes the same."""
    wrapper, x = build(name), image()
    with torch.no_grad():
        expected = wrapper(x)
        merge_adapters(wrapper)
        _same(wrapper(x), expected)
        stock = MODELS.build(ConfigDict(with_timm_options(copy.deepcopy(TINY[name]))))
        stock.load_state_dict(wrapper.backbone.state_dict())
        stock.eval()
        outputs = stock(x)
        if wrapper._channels_last:
            outputs = [out.permute(0, 3, 1, 2) for out in outputs]
        _same(outputs, expected)


def saves_slim(name: str) -> None:
    """A checkpoint without the frozen base brings the same model back."""
    wrapper, other = build(name), build(name)
    with torch.no_grad():
        for adapter in list_adapters(other).values():
            adapter.in_factors.zero_()
    for one in (wrapper, other):
        one.base_source, one.base_is_loaded = "base.pth", True
    state = wrapper.state_dict()
    assert strip_frozen(state, wrapper) and len(state) < len(wrapper.state_dict())
    other.load_state_dict(state)
    with torch.no_grad():
        _same(other(image()), wrapper(image()))


def trains_by_lora(name: str) -> None:
    """LoRA acts on the same matrices."""
    lora = build(name, method="lora")
    assert list_adapters(lora).keys() == list_adapters(build(name)).keys()
    sum(out.square().mean() for out in lora(image())).backward()
    assert all(a.out_factors.grad.abs().max() > 0 for a in list_adapters(lora).values())


def _same(found, expected) -> None:
    for a, b in zip(found, expected, strict=True):
        scale = float(b.abs().max())
        torch.testing.assert_close(a, b, atol=1e-4 * max(scale, 1.0), rtol=1e-4)


#: Column of the table -> what has to hold.
CHECKS: dict[str, Callable[[str], None]] = {
    "blocks": all_is_adapted,
    "adapters act": every_adapter_acts,
    "any size": other_sizes,
    "merge": merges,
    "slim": saves_slim,
    "LoRA": trains_by_lora,
}


#: What of images varies in an exported file -> its cell.
FREEDOM = {"batch and size": "any size", "batch": "fixed size", "nothing": "one image"}


def segmentor(name: str) -> nn.Module:
    """The tiny backbone of a family, wrapped, under a linear head of 4 classes on all its maps."""
    backbone = build(name)
    channels = describe_backbone(backbone).channels
    stock = dict(mean=[120.0] * 3, std=[60.0] * 3, size=SIZE)
    config = ConfigDict(
        type="EncoderDecoder",
        data_preprocessor=dict(type="SegDataPreProcessor", **stock),
        backbone=dict(type="SnellaBackbone", backbone=TINY[name], adapter=dict(rank=4)),
        decode_head=dict(
            type="LinearHead",
            in_channels=list(channels),
            in_index=list(range(len(channels))),
            num_classes=4,
        ),
        test_cfg=dict(mode="whole"),
    )
    model = MODELS.build(copy.deepcopy(config)).eval()
    model.backbone = backbone
    nn.init.normal_(model.decode_head.conv_seg.weight)  # logits that tell
    return model


def exported(name: str) -> tuple[str, str]:
    """The cell of the family's ONNX file, which onnxruntime runs, and why it is not freer."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = export_segmentor(segmentor(name), Path(folder) / "model.onnx")
        except (ValueError, CheckpointError) as error:
            return "no", str(error).replace(folder, "").lstrip("/")
    reason = "; ".join(why for _, why in report.refused)
    return FREEDOM[report.info["varies"]], reason


def fixed_size(name: str) -> bool:
    """Whether a family takes images of its own size only."""
    return isinstance(build(name).image_sizes.rule, str) and build(name).image_sizes.rule != "any"


def row(name: str) -> tuple[str, list[str]]:
    """A family's row of the table, and what is said of it below."""
    facts, cells = describe_backbone(build(name)), []
    for check, run in CHECKS.items():
        if check == "any size" and fixed_size(name):
            cells.append(build(name).image_sizes.rule)
            continue
        try:
            run(name)
            cells.append("yes")
        except (AssertionError, RuntimeError, ValueError) as error:
            cells.append(f"no: {str(error).splitlines()[0][:60]}")
    cell, reason = exported(name)
    cells.append(cell)
    notes = [f"- {name}: {reason}"] if reason else []
    kinds = ", ".join(facts.coverage.matrices)
    left = ", ".join(dict.fromkeys(one.kind for one in facts.coverage.left_out)) or "-"
    return f"| {name} | {kinds} | {left} | {' | '.join(cells)} |", notes


def main(names: list[str]) -> None:
    """Print the table."""
    register_all_modules()
    MMLogger.get_current_instance().setLevel("WARNING")
    columns = (*CHECKS, "ONNX")
    print(f"| family | adapted by 'auto' | left out of blocks | {' | '.join(columns)} |")
    print("|---" * (3 + len(columns)) + "|")
    notes: list[str] = []
    for name in names or TINY:
        line, more = row(name)
        print(line, flush=True)
        notes += more
    print("", *notes, sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
