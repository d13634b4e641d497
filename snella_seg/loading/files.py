"""Files: found, written whole or not at all, and read with plain errors."""

import contextlib
import hashlib
import logging
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import print_log
from mmengine.runner import find_latest_checkpoint

from ..inject import is_adapter_key
from .errors import CheckpointError

ATOMIC = "SnellaAtomicBackend"
#: Key of the metadata of a safetensors file.
DIGEST = "sha256"
_REMOTE = ("http://", "https://", "s3://", "modelzoo://", "torchvision://", "open-mmlab://")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; it becomes ``path`` when the block ends well.

    The data are on the disk before the name changes, so a run that is killed leaves the old file
    or the new one. The folder is made where it is missing; a block that fails leaves nothing.

    Raises:
        IsADirectoryError: when ``path`` is a folder.
        NotADirectoryError: as :func:`make_folder`.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, where a file is to be written: name a file")
    make_folder(path.parent)
    partial = path.with_name(f"{path.name}.partial{os.getpid()}")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def make_folder(path: str | os.PathLike) -> Path:
    """Make a folder to write to, and those above it, where they are missing.

    Raises:
        NotADirectoryError: when it, or what should be a folder above it, is a file.
        OSError: when it cannot be made for another reason, which the line tells.
    """
    path = Path(path)
    for taken in (path, *path.parents):
        if taken.exists() and not taken.is_dir():
            raise NotADirectoryError(
                f"{taken} is a file, where a folder is to be written to: name another one"
            )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"the folder {path} cannot be made ({error.strerror}): name another one"
        ) from error
    return path


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file by :func:`atomic_write`."""
    with atomic_write(path) as partial:
        partial.write_text(text)


class AtomicBackend(LocalBackend):
    """mmengine's local files, written by :func:`atomic_write`."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        with atomic_write(filepath) as partial:
            partial.write_bytes(obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = "utf-8") -> None:
        self.put(obj.encode(encoding), filepath)


register_backend(ATOMIC, AtomicBackend, force=True)


def remove_partials(folder: Path) -> None:
    """Remove what killed runs left half-written in a folder."""
    for partial in folder.glob("*.partial*"):
        partial.unlink(missing_ok=True)


def is_pickle_or_zip(path: str | os.PathLike) -> bool:
    """Whether a file begins as torch.save writes, now or before version 1.6.

    A safetensors file may begin with the same byte: the length of its header, before a brace.
    """
    with open(path, "rb") as file:
        start = file.read(9)
    pickled = start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5")
    return start[8:9] != b"{" and (pickled or start[:4] == b"PK\x03\x04")


def save_safetensors(tensors: dict, path: str | os.PathLike, metadata: dict[str, str]) -> None:
    """Write tensors atomically; each is stored on its own, contiguous, from the CPU.

    A digest of all tensors and metadata goes along, which :func:`load_safetensors` checks.
    """
    from safetensors.torch import save_file

    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    with atomic_write(path) as partial:
        save_file(own, partial, {**metadata, DIGEST: _digest(own, metadata)})


def _digest(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of tensors, and of all metadata but itself."""
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.contiguous().flatten().view(torch.uint8).numpy())
    for key, text in sorted(metadata.items()):
        if key != DIGEST:
            found.update(f"{key} {text}\n".encode())
    return found.hexdigest()


def load_safetensors(path: str | os.PathLike) -> tuple[dict, dict[str, str]]:
    """Read all tensors and the metadata of a safetensors file. Nothing in it can run as code.

    Raises:
        FileNotFoundError: when it is not there.
        CheckpointError: when it is cut short, damaged, or of another kind, such as a pickle.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"file not found: {path}")
    if is_pickle_or_zip(path):
        raise CheckpointError(
            f"{path} is a file of torch.save (a pickle), not safetensors; it has not been opened. "
            "Give an adapter file, or use tools/export_adapter.py to make one of a checkpoint"
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
            metadata = file.metadata() or {}
    except (SafetensorError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} is cut short or no safetensors file ({error}); get it anew"
        ) from None
    if DIGEST in metadata and metadata[DIGEST] != _digest(tensors, metadata):
        raise CheckpointError(
            f"{path} is damaged or was changed by hand: its content is not what was written; get "
            "it anew"
        )
    return tensors, metadata


def damage(path: str | os.PathLike) -> str | None:
    """What is wrong with a file of torch.save, by its checksums, or None; reads all of it once.

    torch itself does not look at them, and would give out other weights than were written.
    """
    with open(path, "rb") as file:
        if file.read(1) == b"\x80":  # as torch saved before 1.6: without checksums
            return None
    try:
        if not zipfile.is_zipfile(path):
            return "is cut short or not from torch.save"
        with zipfile.ZipFile(path) as archive:
            if not any(name.endswith("data.pkl") for name in archive.namelist()):
                return f"is not from torch.save, but a zip archive of {archive.namelist()[:3]}"
            wrong = archive.testzip()
    except Exception as error:  # whatever damaged names, lengths and flags lead to
        return f"is damaged ({error})"
    return None if wrong is None else f"is damaged (bytes of {wrong} are not those written)"


def check_checkpoint(path: str, what: str, resume: bool = False) -> None:
    """See that a local file is there, is whole and holds a model; remote addresses are let pass.

    Args:
        path: of the file.
        what: it is, for the message.
        resume: whether a run is to go on from it, which takes more than weights.

    Raises:
        FileNotFoundError: when there is none.
        CheckpointError: when it is cut short, damaged, or holds something else. (Adapter files are
            checked when they are read.)
    """
    if path.startswith(_REMOTE):
        return
    if not Path(path).is_file():
        raise FileNotFoundError(f"{what} not found: {path}")
    if path.endswith(".safetensors"):
        return
    trouble = damage(path)
    if trouble is not None:
        raise CheckpointError(f"{what} {trouble}: {path}; copy it anew, or use an earlier one")
    content = _content(path)
    trouble = None if content is None else _misfit(content, resume)
    if trouble is not None:
        raise CheckpointError(f"{what} {trouble}: {path}")


def _misfit(content: Any, resume: bool) -> str | None:
    """Why what a file holds is no checkpoint, or None."""
    if not isinstance(content, dict):
        return f"holds a {type(content).__name__} instead of a dict with a state_dict"
    state = _weights(content)
    if state is None:
        return "holds no weights (its state_dict is empty or of another kind)"
    missing = [key for key in ("meta", "optimizer", "message_hub") if not content.get(key)]
    other = [k for k in ("meta", "snella") if not isinstance(content.get(k) or {}, dict)]
    if resume and (missing or other):
        return (
            f"has no {' and no '.join(missing or other)}{' that is a dict' * bool(other)}, so no "
            "run can go on from it; start a new one from its weights by --cfg-options "
            "load_from=FILE"
        )
    floats = (
        (n, v) for n, v in state.items() if isinstance(v, torch.Tensor) and v.is_floating_point()
    )
    for name, value in floats:
        if not bool(value.isfinite().all()):
            return f"holds NaN or infinity in {name}: the run had diverged; use an earlier one"
    return None


def _weights(content: dict) -> dict | None:
    """The state dict of a checkpoint, which may be one itself; None where it has no tensor."""
    state = content.get("state_dict", content.get("model", content))
    held = isinstance(state, dict) and any(isinstance(v, torch.Tensor) for v in state.values())
    return state if held else None


def holds_adapters(path: str) -> bool | None:
    """Whether a checkpoint has adapters of ours; None where that cannot be told."""
    content = _content(path)
    state = _weights(content) if isinstance(content, dict) else None
    return None if state is None else any(is_adapter_key(str(name)) for name in state)


def _content(path: str | os.PathLike) -> Any:
    """What a file of torch.save holds, its tensors left on the disk; None where none can tell.

    As mmengine reads it, safely if it can be, since it is about to be loaded by that.
    """
    for weights_only in (True, False):
        try:
            mmap = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", mmap=mmap, weights_only=weights_only)
        except Exception:  # whatever is in it, the loader will say
            continue
    return None


def latest_checkpoint(work_dir: str) -> str | None:
    """The checkpoint from which a run in ``work_dir`` goes on, or None to begin.

    That is the one that ``last_checkpoint`` names, if it is whole, in the work dir if that has been
    moved; else the newest whole one.

    Raises:
        CheckpointError: when one was written, but none is whole.
    """
    folder, candidates = Path(work_dir), []
    named = find_latest_checkpoint(work_dir)
    if named and "://" in named:
        return named
    if named:
        candidates = [Path(named), folder / Path(named).name]
    others = [*folder.glob("iter_*.pth"), *folder.glob("epoch_*.pth")]
    candidates += sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)
    found = None
    for path in dict.fromkeys(path for path in candidates if path.is_file()):
        trouble = damage(path)
        if trouble is None:
            found = str(path)
            break
        print_log(f"{path} {trouble}: an earlier checkpoint is used", "current", logging.WARNING)
    if found is None and named is not None:
        raise CheckpointError(
            f"{folder / 'last_checkpoint'} names {named or 'nothing'}, and no whole checkpoint is "
            "there to resume from; give --resume PATH, or remove that file to begin anew"
        )
    return found
