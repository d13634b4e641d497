"""Adapter files into segmentors: by our function, and wherever mmengine reads checkpoints."""

from collections.abc import Iterable
from pathlib import Path

from mmengine.runner import CheckpointLoader
from torch import nn

from ..loading import CheckpointError, load_safetensors, some
from ..loading.header import check_adapter_options, differing_backbone
from ..models import find_wrapper, task_state
from .adapter_file import FORMAT, AdapterFile, checked, forced, read_adapter


def load_adapter(model: nn.Module, path: str | Path, force: Iterable[str] = ()) -> AdapterFile:
    """Load an adapter file into a segmentor of the same make; all of it or nothing.

    The base is loaded from where the model's config says, unless it is there already, and must be
    the one that the adapters were trained on.

    Args:
        model: a segmentor whose backbone is a SnellaBackbone.
        path: the file.
        force: see :func:`read_adapter`; ``'base'`` loads it onto another base.

    Raises:
        CheckpointError: on a wrong base, other options, missing, extra or misshapen tensors; and
            as :func:`read_adapter`.
    """
    force = forced(force)
    file, (_, wrapper) = read_adapter(path, force), find_wrapper(model)
    own, given, header = task_state(model), file.tensors, file.info["header"]
    other = differing_backbone(wrapper.inner_config, header["backbone"])
    if other:
        raise CheckpointError(f"{path}: {other}")
    check_adapter_options(wrapper, header)
    heads = file.info["heads"]
    expected = own if heads else {k: v for k, v in own.items() if k.startswith(file.info["prefix"])}
    for what, names in (
        ("misses", [name for name in expected if name not in given]),
        ("holds what this model lacks,", [name for name in given if name not in expected]),
    ):
        if names:
            raise CheckpointError(
                f"{path} {what} {some(names)}. Use the config (targets, rank, heads) of its "
                "training"
            )
    shapes = [
        f"{name} {tuple(value.shape)} instead of {tuple(own[name].shape)}"
        for name, value in given.items()
        if value.shape != own[name].shape
    ]
    if shapes:
        raise CheckpointError(
            f"{path} does not fit this model: {some(shapes)}. Use the config of its training"
        )
    checks, wrapper.check_base = wrapper.check_base, "base" not in force
    try:
        model.load_state_dict(file.state_dict(), strict=heads)
    finally:
        wrapper.check_base = checks
    return file


@CheckpointLoader.register_scheme(prefixes=r".*\.safetensors$", force=True)
def load_from_safetensors(filename: str, map_location=None) -> dict:
    """Let mmengine read adapter files, and plain weights, as it reads .pth files.

    So stock tools/test.py, ``load_from`` and ``init_model`` take an adapter file for a checkpoint.
    """
    tensors, metadata = load_safetensors(filename)
    if metadata.get("format") != FORMAT:
        return dict(state_dict=tensors, meta={})
    file = checked(Path(filename), tensors, metadata, set())
    meta = dict(dataset_meta=file.info["metainfo"]) if file.info["metainfo"] else {}
    return dict(state_dict=file.state_dict(), meta=meta)
