"""Files of pretrained weights: read without running what is in them where that can be."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import torch
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

from .errors import CheckpointError
from .files import load_safetensors

#: Under which keys published files hold a state dict, in the order in which they are looked for.
_CONTAINERS = ("state_dict", "model_state", "model", "teacher", "student", "module", "encoder")


def read_weights(source: str) -> dict[str, Tensor]:
    """All tensors of a file of weights, by the names that they have in it.

    Args:
        source: a file of torch.save, ``.safetensors`` (read without pickle) or ``.npz`` (likewise),
            or an address that mmengine knows.

    Raises:
        FileNotFoundError: when there is no such file.
        CheckpointError: when it cannot be read, holds no weights, or values that are not finite.
    """
    kind = Path(source).suffix if "://" not in source else ""
    try:
        if kind == ".safetensors":
            state, metadata = load_safetensors(source)
            _refuse_adapter_file(source, metadata)
        elif kind == ".npz":
            state = _read_npz(source)
        else:
            content = CheckpointLoader.load_checkpoint(source, map_location="cpu", logger=None)
            state = _state_in(content, source)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"base weights not found: {source}; put the file there or set the checkpoint of "
            "model.backbone.backbone.init_cfg (or model.pretrained)"
        ) from None
    except CheckpointError:
        raise
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        AttributeError,  # a pickle of classes that are not there
        ImportError,
        OSError,  # EOFError is none
        EOFError,
        RuntimeError,
        ValueError,
        KeyError,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"base weights cannot be read from {source}, the file is cut short or not from "
            f"torch.save ({reason}); get it anew"
        ) from None
    if not state:
        raise CheckpointError(f"{source} holds no weights; give a file of pretrained weights")
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise CheckpointError(f"{source} holds NaN or infinity in {name}; get it anew")
    return state


def _state_in(content, source: str) -> dict[str, Tensor]:
    """The state dict within what torch.save has written."""
    for _ in range(3):  # they are nested in some files
        if not isinstance(content, dict):
            break
        inner = next((content[k] for k in _CONTAINERS if isinstance(content.get(k), dict)), None)
        if inner is None:
            return {str(k): v for k, v in content.items() if torch.is_tensor(v)}
        content = inner
    raise CheckpointError(
        f"{source} holds a {type(content).__name__}, not the weights of a model by their names; "
        "save its state_dict() and give that file"
    )


def _read_npz(source: str) -> dict[str, Tensor]:
    with open(source, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}


def _refuse_adapter_file(source: str, metadata: dict[str, str]) -> None:
    """Say of a file of adapters that it is no base."""
    if metadata.get("format", "").startswith("snella_seg."):
        raise CheckpointError(
            f"{source} holds a task's adapters without the frozen base: give the base that they "
            "were trained on here (tools/inspect_adapter.py names it), and this file as load_from"
        )
