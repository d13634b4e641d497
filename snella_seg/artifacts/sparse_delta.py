"""Sparse deltas: which weights of a backbone a task has changed, and how, exactly.

A change is stored as the exclusive or of the old and the new value's bits. Adding it to the base
and taking it off again are then the same operation, and both give the very bits (a difference of
floats would be rounded twice). Positions are coded per tensor in the shortest of three ways.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..loading import CheckpointError, load_safetensors, save_safetensors, some
from ..loading.header import FORMAT_VERSION, check_version, fingerprint
from .positions import decode_positions, encode_positions, lower_bound

FORMAT = "snella_seg.delta"
_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.int64: torch.int64,  # counters of BatchNorms
}


@dataclass(frozen=True)
class SparseDelta:
    """The changed weights of a backbone.

    Attributes:
        positions: name -> flat indices of the changed weights, int64, ascending.
        changes: name -> exclusive or of old and new bits, an integer of the weight's width each.
        shapes: name -> shape of the tensor.
        base, merged: digests (:func:`snella_seg.loading.header.fingerprint`) before and after.
    """

    positions: dict[str, np.ndarray]
    changes: dict[str, Tensor]
    shapes: dict[str, list[int]]
    base: dict[str, str]
    merged: dict[str, str]

    @property
    def num_changed(self) -> int:
        """Number of changed weights."""
        return sum(len(positions) for positions in self.positions.values())


def make_delta(base: dict[str, Tensor], merged: dict[str, Tensor]) -> SparseDelta:
    """Find what differs between two states of the same backbone.

    Args:
        base: weights before.
        merged: weights after, such as of :func:`snella_seg.artifacts.merged_backbone`.

    Raises:
        ValueError: when names, shapes or dtypes differ.
    """
    _same_make(base, merged)
    positions, changes, shapes = {}, {}, {}
    for name, new in merged.items():
        if new.dtype not in _BITS:
            continue
        change = (_bits(base[name]) ^ _bits(new)).flatten()
        found = change.nonzero().flatten()
        if found.numel():
            positions[name], changes[name] = found.numpy(), change[found]
            shapes[name] = list(new.shape)
    return SparseDelta(positions, changes, shapes, fingerprint(base), fingerprint(merged))


def apply_delta(base: dict[str, Tensor], delta: SparseDelta) -> dict[str, Tensor]:
    """The changed weights: ``base`` with the delta, the bits that it was made of.

    Args:
        base: state of the stock backbone; left as it is.
        delta: see :func:`make_delta`.

    Returns:
        A new dict; tensors without a change are those of ``base``.

    Raises:
        CheckpointError: when ``base`` is not the one that the delta was made for.
    """
    _expect(base, delta.base, "the base of this delta")
    merged = _exclusive_or(base, delta)
    _expect(merged, delta.merged, "what this delta makes of its base: it is damaged")
    return merged


def remove_delta(merged: dict[str, Tensor], delta: SparseDelta) -> dict[str, Tensor]:
    """Undo :func:`apply_delta`: the base, bit for bit.

    Raises:
        CheckpointError: when ``merged`` is not what the delta makes of its base.
    """
    _expect(merged, delta.merged, "the base with this delta")
    base = _exclusive_or(merged, delta)
    _expect(base, delta.base, "what this delta was made from: it is damaged")
    return base


def save_delta(delta: SparseDelta, path: str | Path, **info) -> None:
    """Write a delta as a safetensors file, atomically.

    Args:
        delta: to be written.
        path: of the file.
        info: goes into its metadata, as JSON.
    """
    tensors, codings = {}, {}
    for name, positions in delta.positions.items():
        coding, words = encode_positions(positions, math.prod(delta.shapes[name]))
        codings[name] = coding
        tensors[f"{name}.positions"] = torch.from_numpy(words)
        tensors[f"{name}.changes"] = delta.changes[name]
    text = dict(
        info,
        shapes=delta.shapes,
        codings=codings,
        base=delta.base,
        merged=delta.merged,
        changed={name: len(positions) for name, positions in delta.positions.items()},
    )
    metadata = dict(format=FORMAT, version=str(FORMAT_VERSION), snella=json.dumps(text))
    save_safetensors(tensors, path, metadata)


def load_delta(path: str | Path) -> tuple[SparseDelta, dict]:
    """Read a delta and its metadata; nothing in the file can run as code.

    Raises:
        FileNotFoundError: when it is not there.
        CheckpointError: when it is cut short, of another kind or version, or inconsistent.
    """
    tensors, metadata = load_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is no sparse delta of snella_seg (format {metadata.get('format')}); "
            "tools/export_delta.py makes one"
        )
    try:
        check_version(int(metadata["version"]), str(path))
        info = json.loads(metadata["snella"])
        positions, changes = {}, {}
        for name, shape in info["shapes"].items():
            changes[name] = tensors[f"{name}.changes"]
            positions[name] = decode_positions(
                info["codings"][name], tensors[f"{name}.positions"].numpy(), math.prod(shape)
            )
            if len(positions[name]) != len(changes[name]):
                raise ValueError(f"{name} has more positions or changes than the other")
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); get it anew") from None
    return SparseDelta(positions, changes, info["shapes"], info["base"], info["merged"]), info


# Positions


def position_bytes(delta: SparseDelta) -> Iterator[tuple[str, int, float]]:
    """Name, bytes of the coded positions and their lower bound, for every changed tensor."""
    for name, positions in delta.positions.items():
        size = math.prod(delta.shapes[name])
        words = encode_positions(positions, size)[1]
        yield name, words.nbytes, lower_bound(len(positions), size)


def _bits(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous().view(_BITS[value.dtype])


def _exclusive_or(state: dict[str, Tensor], delta: SparseDelta) -> dict[str, Tensor]:
    changed = dict(state)
    for name, positions in delta.positions.items():
        if _BITS.get(state[name].dtype) != delta.changes[name].dtype:
            raise CheckpointError(
                f"{name} is {state[name].dtype}, the delta was made for weights of "
                f"{8 * delta.changes[name].element_size()} bits"
            )
        bits = _bits(state[name]).flatten().clone()
        bits[torch.from_numpy(positions)] ^= delta.changes[name]
        value = bits.view(state[name].dtype).view(state[name].shape)
        changed[name] = value.to(state[name].device)
    return changed


def _same_make(base: dict[str, Tensor], merged: dict[str, Tensor]) -> None:
    differing = [
        name
        for name in {**base, **merged}
        if name not in base
        or name not in merged
        or base[name].shape != merged[name].shape
        or base[name].dtype != merged[name].dtype
    ]
    if differing:
        raise ValueError(f"the states differ in names, shapes or dtypes: {some(differing)}")


def _expect(state: dict[str, Tensor], digests: dict[str, str], what: str) -> None:
    missing = [name for name in digests if name not in state]
    own = fingerprint({name: state[name] for name in digests if name in state})
    differing = [name for name, digest in own.items() if digest != digests[name]]
    if missing or differing:
        which = f"it lacks {some(missing)}" if missing else f"other values in {some(differing)}"
        raise CheckpointError(f"these weights are not {what}: {which}")
