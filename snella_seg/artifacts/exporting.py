"""A segmentor for other runtimes: ONNX and torch.export's programs, proved before they are kept."""

import importlib.util
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmseg.models import EncoderDecoder
from torch import Tensor, nn

from ..loading import CheckpointError, atomic_write
from ..models import find_wrappers
from ..models.bands import input_bands
from ..models.image_size import ImageSizes
from .exportable import Deployable, fixes_size
from .proving import Proof, proof_batches, proof_image, proof_sample, prove, refuse_unequal

#: What of a file's images may vary, the most useful first.
FREEDOMS = ("batch and size", "batch", "nothing")
_STEP = 32  # of sizes, where a backbone takes any: the coarsest map of common ones
_LARGEST = 2**31 - 2**24  # bytes of weights in one ONNX file


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: of the file.
        info: what the file's metadata say: ``input`` and ``output``, ``varies`` (of
            :data:`FREEDOMS`), ``step`` of sizes, ``size``, ``classes`` and ``palette``.
        refused: (freedom, reason) of those that would have been more useful.
        proofs: one a batch.
    """

    path: Path
    info: dict
    refused: tuple[tuple[str, str], ...]
    proofs: tuple[Proof, ...]


def export_segmentor(
    model: nn.Module,
    path: str | Path,
    image: str | None = None,
    size: tuple[int, int] | None = None,
    labels: bool = False,
    normalise: bool = True,
    opset: int | None = None,
) -> ExportReport:
    """Write a merged segmentor as ONNX (.onnx) or as a program of torch.export (.pt2).

    The file takes ``images``, (N, bands, H, W) in float32, and gives ``logits``
    (N, classes, H, W) or ``labels`` (N, H, W), int64, of the same size. It is run, by onnxruntime
    or by torch, on several sizes and batches, compared with the model, and kept only when they
    agree. Batch and size may vary where the model's code lets them.

    Args:
        model: of :func:`snella_seg.models.build_segmentor`; stays as it is.
        path: ends in .onnx or .pt2.
        image: a file to compare on; None for noise.
        size: (H, W) of the images, fixed; None for any where that is possible.
        labels: write labels instead of logits.
        normalise: the file normalises as the data preprocessor does.
        opset: of ONNX; None for that which torch recommends.

    Raises:
        ImportError: when packages for ONNX are missing.
        ValueError: on another suffix, a model that is no EncoderDecoder or tests by a sliding
            window without ``size``, or one whose code cannot be exported.
        CheckpointError: when the file does not compute what the model does; it is not kept.
    """
    path = Path(path)
    check_target(path)
    step, fixed = _sizes_of(model)
    window = _window(model, size, fixed, step)
    if path.suffix == ".onnx" and _bytes(model) > _LARGEST:
        raise ValueError("an ONNX file holds 2 GB at most, and these weights are more: name a .pt2")
    given = proof_image(model, image, window)
    deployable = Deployable(model, labels, normalise)
    refused: list[tuple[str, str]] = []
    for freedom in FREEDOMS[1:] if size or fixed or fixes_size(model) else FREEDOMS:
        info = _info(model, deployable, freedom, step, window)
        batches = proof_batches(given, freedom, step, window)
        samples = [proof_sample(model, batch, normalise) for batch in batches]
        try:
            program = _program(deployable, samples[0][0].shape[1], freedom, step, window)
            with atomic_write(path) as partial:
                run = _WRITERS[path.suffix](program, partial, info, opset)
                proofs = tuple(prove(run, deployable, *sample) for sample in samples)
                refuse_unequal(path, proofs)
        except (CheckpointError, OSError):
            raise
        except Exception as error:  # whatever the exporters or the runtime find in stock code
            refused.append((freedom, _first_line(error)))
        else:
            return ExportReport(path, info, tuple(refused), proofs)
    raise ValueError(f"this model's code cannot be exported: {refused[-1][1]}")


def check_target(path: Path) -> None:
    """See that a file can be written as its suffix says.

    Raises:
        ValueError: on another suffix than .onnx and .pt2.
        ImportError: naming the extra that ONNX needs.
    """
    if path.suffix not in _WRITERS:
        raise ValueError(
            f"{path}: name the file .onnx (ONNX) or .pt2 (torch.export), not {path.suffix or path}"
        )
    needed = ("onnx", "onnxscript", "onnxruntime") if path.suffix == ".onnx" else ()
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"ONNX needs {', '.join(missing)}: pip install 'snella_seg[export]' (a .pt2 needs "
            "torch alone)"
        )


def _sizes_of(model: nn.Module) -> tuple[int, tuple[int, int] | None]:
    """What height and width must be multiples of, and the only size, if there is one."""
    wrapper = next((one for _, one in find_wrappers(model)), None)
    if wrapper is None:
        sizes = ImageSizes(model.cfg.model.backbone, model.backbone)
    else:
        sizes = wrapper.image_sizes
    padding = getattr(model.data_preprocessor, "test_cfg", None) or {}
    only = padding.get("size") if sizes.rule == "any" else sizes.img_size
    step = sizes.rule if isinstance(sizes.rule, int) else 1 if only else _STEP
    return math.lcm(step, padding.get("size_divisor") or 1), tuple(only) if only else None


def _window(model: nn.Module, size, fixed, step: int) -> tuple[int, int]:
    """The size of images, if it is fixed, or a usual one."""
    if not isinstance(model, EncoderDecoder):
        raise ValueError(f"only EncoderDecoder can be exported, not {type(model).__name__}")
    if size is None and model.test_cfg.get("mode") == "slide":
        crop = model.test_cfg.get("crop_size", "H W")
        height, width = (crop, crop) if isinstance(crop, int) else crop
        raise ValueError(
            "the config tests by a sliding window (model.test_cfg.mode='slide'), and the file "
            f"computes one window: give --size {height} {width} for that, or --cfg-options "
            "model.test_cfg.mode=whole for whole images"
        )
    if size and fixed and tuple(size) != fixed:
        raise ValueError(f"this model takes images of {fixed[0]}x{fixed[1]} only: leave --size out")
    if size and any(side < 1 or side % step for side in size):
        raise ValueError(
            f"--size {size[0]} {size[1]}: height and width are positive multiples of {step}"
        )
    usual = getattr(model.data_preprocessor, "size", None) or (512, 512)
    found = tuple(size or fixed or (usual if len(tuple(usual)) == 2 else (512, 512)))
    return tuple(max(side // step, 2) * step for side in found) if not (size or fixed) else found


def _program(
    deployable: Deployable, bands: int, freedom: str, step: int, window: tuple[int, int]
) -> torch.export.ExportedProgram:
    """Trace a model, with symbols for what may vary, at a size that none of its tables has."""
    varies: dict[int, object] = {}
    height, width = window
    if freedom != "nothing":
        varies[0] = torch.export.Dim("batch", min=1, max=2**12)
    if freedom == "batch and size":
        height, width = height + step, width + 2 * step
        for axis, name in ((2, "rows"), (3, "columns")):
            varies[axis] = step * torch.export.Dim(name, min=1, max=2**12)
    example = torch.rand(2 if varies else 1, bands, height, width) * 255
    with torch.no_grad(), _quiet():
        program = torch.export.export(
            deployable,
            (example,),
            dynamic_shapes=(varies,),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    graph = program.graph_module.graph
    for node in list(graph.nodes):  # they bar sizes where both branches of stock code agree
        if node.target is torch.ops.aten._assert_scalar.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _write_program(program, partial: Path, info: dict, opset) -> Callable[[Tensor], Tensor]:
    """Write a program of torch.export; return what runs the file."""
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={"snella.json": json.dumps(info)})
    partial.write_bytes(content.getvalue())
    module = torch.export.load(io.BytesIO(partial.read_bytes())).module()
    return torch.no_grad()(module)


def _write_onnx(
    program, partial: Path, info: dict, opset: int | None
) -> Callable[[Tensor], Tensor]:
    """Write an ONNX file; return what runs it by onnxruntime."""
    import onnxruntime

    names = dict(input_names=[info["input"]["name"]], output_names=[info["output"]["name"]])
    with _quiet():
        onnx = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=opset, **names)
    for key, value in info.items():
        onnx.model.metadata_props[f"snella.{key}"] = json.dumps(value)
    onnx.save(str(partial), external_data=False)
    info["opset"] = onnx.model.opset_imports[""]
    session = onnxruntime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


_WRITERS = {".onnx": _write_onnx, ".pt2": _write_program}


def _info(
    model: nn.Module, deployable: Deployable, freedom: str, step: int, window: tuple[int, int]
) -> dict:
    """What a file says of itself."""
    what = "as the test pipeline gives them" if deployable.takes_raw else "normalised"
    meta = getattr(model, "dataset_meta", None) or {}
    return {
        "input": {"name": "images", "values": what, "bands": input_bands(model.backbone)},
        "output": {"name": "labels" if deployable.labels else "logits"},
        "varies": freedom,
        "step": step,
        "size": None if freedom == "batch and size" else list(window),
        "classes": list(meta.get("classes") or ()),
        "palette": np.asarray(meta.get("palette") or ()).tolist(),
    }


def _bytes(model: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())


def _first_line(error: Exception) -> str:
    """The first line of an error that says something, without colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' notes to themselves."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
