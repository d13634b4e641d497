"""Adapter files: one task's part of a segmentor in one safetensors file, without any pickle."""

import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from ..configs import find_file, type_name
from ..inject import get_method, list_adapters
from ..layers import Adapter
from ..loading import CheckpointError, some
from ..loading.files import load_safetensors, save_safetensors
from ..loading.header import (
    FORMAT_VERSION,
    HEADER,
    check_header,
    check_version,
    encode_header,
    frozen_state,
    make_header,
)
from ..loading.plain_config import plain_config, restore_tuples
from ..models import find_wrapper, task_state
from ..models.inference import testing_pipeline
from .config_trust import refuse_unknown_types

FORMAT = "snella_seg.adapter"
SUFFIX = ".safetensors"
#: What of a file may be passed over on request: its checksum, its format version, its base.
FORCEABLE = ("checksum", "version", "base")
_INFO, _PACKAGES = "snella", ("snella_seg", "torch", "timm", "mmengine", "mmcv", "mmseg")


@dataclass(frozen=True)
class AdapterFile:
    """What an adapter file holds.

    Attributes:
        path: where it was read from.
        info: ``header`` (adapter options and base, see :mod:`snella_seg.loading.header`),
            ``prefix`` of the wrapped backbone, ``matrices`` (name -> shape, rank, nonzero),
            ``model`` and ``test_pipeline`` (configs), ``metainfo`` (classes, palette), ``heads``
            (whether they are in it), ``packages`` (versions).
        tensors: names as in the segmentor's state dict -> values.
    """

    path: Path
    info: dict[str, Any]
    tensors: dict[str, Tensor]

    def state_dict(self) -> dict[str, Tensor]:
        """What a segmentor loads: the tensors and the header; the base is the segmentor's."""
        header = encode_header(self.info["header"])
        return {**self.tensors, self.info["prefix"] + HEADER: header}

    def adapters(self) -> dict[str, Adapter]:
        """Matrix name -> adapter, each on its own, in eval mode.

        Raises:
            CheckpointError: when they do not fit their options, or cannot be apart from the model.
        """
        header, made = self.info["header"], {}
        method = header.get("method", "snella")
        adapter_class = get_method(method).adapter_class
        if not adapter_class.stands_alone:
            raise CheckpointError(
                f"{self.path}: adapters of method {method!r} cannot be taken apart from their "
                "model; load the file into a segmentor (tools/test.py, load_adapter)"
            )
        for name, start in self._starts().items():
            state = {
                k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)
            }
            try:
                rows, columns = self.info["matrices"][name]["shape"]
                with torch.device("meta"):  # whatever shape the file claims
                    adapter = adapter_class(columns, rows, **header["adapter"])
                adapter.load_state_dict(state, assign=True)
            except (KeyError, IndexError, TypeError, ValueError, RuntimeError):
                raise CheckpointError(
                    f"{self.path}: the adapter of {name} does not fit its options; get it anew"
                ) from None
            made[name] = adapter.eval().requires_grad_(False)
        return made

    def bare_backbone(self, base_checkpoint: str | None = None) -> dict:
        """Config of the task's SnellaBackbone without adapters.

        Args:
            base_checkpoint: the base weights; None for where the file says that they were: a
                relative path is looked for from here, then from the file's folder upwards.

        Raises:
            CheckpointError: when neither is known, the file holds no config, or one that names
                what is not registered or a base on another machine.
        """
        if not self.info["model"]:
            raise CheckpointError(f"{self.path} holds no config; export it anew with one")
        refuse_unknown_types(self.info["model"], str(self.path))
        config = {**self.info["model"]["backbone"], "targets": [], "init_cfg": None}
        config["backbone"] = inner = {**config["backbone"], "init_cfg": None}
        source = base_checkpoint or self.info["header"]["base"].get("source")
        if type_name(inner) == "TIMMBackbone" and inner.get("pretrained", True):
            source = base_checkpoint  # timm itself knows where its weights are
        elif source is None:
            raise CheckpointError(f"{self.path} does not name its base; give base_checkpoint")
        if base_checkpoint is None and "://" in str(source):
            raise CheckpointError(
                f"{self.path} says that its base is at {source}; if you trust that, give it as "
                "base_checkpoint"
            )
        config["base_checkpoint"] = source and find_file(source, self.path.resolve().parent)
        return config

    def extras(self) -> dict[str, Tensor]:
        """What else was trained in the backbone, under the stock backbone's names."""
        inner, starts = self.info["prefix"] + "backbone.", tuple(self._starts().values())
        return {
            name.removeprefix(inner): value
            for name, value in self.tensors.items()
            if name.startswith(inner) and not name.startswith(starts)
        }

    def _starts(self) -> dict[str, str]:
        """Matrix name -> how the names of its adapter's tensors begin."""
        inner, starts = self.info["prefix"] + "backbone.", {}
        for name in self.info["matrices"]:
            module, _, kind = name.rpartition(".")
            starts[name] = inner + (f"{module}." if module else "") + f"adapters.{kind}."
        return starts


def save_adapter(
    model: nn.Module,
    path: str | Path,
    config: Config | None = None,
    metainfo: dict | None = None,
    heads: bool = True,
) -> AdapterFile:
    """Write the task's part of a segmentor: adapters, trained extras of the backbone, heads.

    Args:
        model: a segmentor whose backbone is a SnellaBackbone.
        path: ends in ``.safetensors``; replaced only by a complete file.
        config: of the run; default ``model.cfg``. Its ``model`` and the pipeline of
            its tests go along, so that the segmentor can be built from the file and the base
            weights alone.
        metainfo: classes and palette; default ``model.dataset_meta``.
        heads: whether everything outside of the backbone goes along.

    Raises:
        ValueError: on another suffix, a model without one SnellaBackbone, or one whose backbone is
            trained as a whole.
        CheckpointError: when a value is NaN or infinite.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"an adapter file ends in {SUFFIX}, got {path.name}")
    if is_model_wrapper(model):
        model = model.module
    prefix, wrapper = find_wrapper(model)
    if wrapper.merged:
        raise ValueError("the model is merged, its adapters are not apart; unmerge_adapters first")
    if not any(value.is_floating_point() for value in frozen_state(wrapper).values()):
        raise ValueError(
            f"method={wrapper.method_name!r} trained all of the backbone, so there is no base that "
            "an adapter file could be added to: keep the checkpoint, or write a stock one by "
            "tools/merge.py"
        )
    tensors = task_state(model)
    if not heads:
        tensors = {name: v for name, v in tensors.items() if name.startswith(prefix)}
    _refuse_broken(tensors, "the model", "Training has diverged: use an earlier checkpoint")
    config = config or getattr(model, "cfg", None) or {}
    info = {
        "header": make_header(wrapper),
        "prefix": prefix,
        "heads": heads,
        "matrices": {
            name: {
                "shape": [adapter.out_features, adapter.in_features],
                "rank": adapter.options().get("rank"),
                "nonzero": adapter.num_nonzero,
            }
            for name, adapter in list_adapters(wrapper.backbone).items()
        },
        "model": plain_config(config.get("model"), mark_tuples=True),
        "test_pipeline": plain_config(testing_pipeline(config) or None, mark_tuples=True),
        "metainfo": plain_config(
            metainfo or getattr(model, "dataset_meta", None), mark_tuples=True
        ),
        "packages": {
            name: sys.modules[name].__version__ for name in _PACKAGES if name in sys.modules
        },
        "tensors": sorted(tensors),
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = json.dumps(info)
    metadata = {
        "format": FORMAT,
        "version": str(info["header"]["version"]),
        _INFO: text,
        "checksum": _checksum(text, tensors),
    }
    save_safetensors(tensors, path, metadata)
    return AdapterFile(path, info, tensors)


def read_adapter(path: str | Path, force: Iterable[str] = ()) -> AdapterFile:
    """Read and check an adapter file; nothing in it can run as code.

    Args:
        path: the file.
        force: of :data:`FORCEABLE`, what to pass over.

    Raises:
        FileNotFoundError: when it is not there.
        CheckpointError: when it is cut short, of another kind or format version, changed since it
            was written, or holds NaN or infinite values; the message says which.
        ValueError: when something else is to be forced.
    """
    path, force = Path(path), forced(force)
    return checked(path, *load_safetensors(path), force)


def checked(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], force: set[str]
) -> AdapterFile:
    """An adapter file from what its safetensors file holds; see :func:`read_adapter`."""
    if metadata.get("format") != FORMAT:
        kind = metadata.get("format") or "unknown"
        raise CheckpointError(
            f"{path} is no adapter file of snella_seg (format {kind}); tools/export_adapter.py "
            "makes one of a checkpoint"
        )
    try:
        number, info = int(metadata["version"]), json.loads(metadata[_INFO])
        if "version" not in force:
            check_version(number, str(path))
        _check_info(info)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{path}: its metadata are damaged; get the file anew") from None
    listed = set(info.get("tensors", ()))
    for what, names in (
        ("misses tensors", sorted(listed - set(tensors))),
        ("holds tensors that it does not list", sorted(set(tensors) - listed)),
    ):
        if names:
            raise CheckpointError(f"{path} {what}: {some(names)}; get the file anew")
    if "checksum" not in force and metadata.get("checksum") != _checksum(metadata[_INFO], tensors):
        raise CheckpointError(
            f"{path} was changed since it was written, its checksum does not fit; get the file "
            "anew (force checksum to use it all the same)"
        )
    _refuse_broken(tensors, str(path), "Make it anew from an earlier checkpoint")
    info["header"]["version"] = FORMAT_VERSION  # checked, or passed over
    return AdapterFile(path, info, tensors)


def forced(force: Iterable[str]) -> set[str]:
    force = {force} if isinstance(force, str) else set(force)
    unknown = force - set(FORCEABLE)
    if unknown:
        raise ValueError(
            f"cannot force {', '.join(sorted(unknown))}; choose of {', '.join(FORCEABLE)}"
        )
    return force


def _refuse_broken(tensors: dict[str, Tensor], what: str, advice: str) -> None:
    broken = [n for n, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise CheckpointError(f"{what} holds NaN or infinite values: {some(broken)}. {advice}")


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        found.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return found.hexdigest()


def _check_info(info) -> None:
    """See that metadata have the parts that are read from them.

    Raises:
        KeyError, TypeError: when they do not.
    """
    kinds = dict(header=dict, prefix=str, heads=bool, matrices=dict, tensors=list, packages=dict)
    for key, kind in kinds.items():
        if not isinstance(info[key], kind):
            raise TypeError(f"{key} is no {kind.__name__}")
    for key in ("model", "test_pipeline", "metainfo"):
        info[key] = restore_tuples(info[key])
    check_header(info["header"])
    set(info["tensors"])
