"""Files: found, written whole or not at all, and read with plain errors."""

import contextlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend
from mmengine.runner import find_latest_checkpoint

from .errors import CheckpointError

ATOMIC = "SnellaAtomicBackend"
_REMOTE = ("http://", "https://", "s3://", "modelzoo://", "torchvision://", "open-mmlab://")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; it becomes ``path`` when the block ends well.

    The data are on the disk before the name changes, so a run that is killed leaves the old file
    or the new one. The folder is made where it is missing; a block that fails leaves nothing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial{os.getpid()}")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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
    for partial in folder.glob("*.pth.partial*"):
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
    """Write tensors atomically; each is stored on its own, contiguous, from the CPU."""
    from safetensors.torch import save_file

    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    with atomic_write(path) as partial:
        save_file(own, partial, metadata)


def load_safetensors(path: str | os.PathLike) -> tuple[dict, dict[str, str]]:
    """Read all tensors and the metadata of a safetensors file. Nothing in it can run as code.

    Raises:
        FileNotFoundError: when it is not there.
        CheckpointError: when it is cut short, or of another kind, such as a pickle.
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
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is cut short or no safetensors file ({error}); get it anew"
        ) from None


def check_checkpoint(path: str, what: str) -> None:
    """See that a local file is there and may be a checkpoint; remote addresses are let pass.

    Raises:
        FileNotFoundError: when there is none.
        CheckpointError: when it is cut short, or something else. (Adapter files are checked when
            they are read.)
    """
    if path.startswith(_REMOTE):
        return
    if not Path(path).is_file():
        raise FileNotFoundError(f"{what} not found: {path}")
    if path.endswith(".safetensors"):
        return
    with open(path, "rb") as file:
        is_pickle = file.read(1) == b"\x80"  # as torch saved before 1.6
    if not is_pickle and not zipfile.is_zipfile(path):
        raise CheckpointError(f"{what} is cut short or not from torch.save: {path}; copy it anew")


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
    found = next((str(path) for path in candidates if zipfile.is_zipfile(path)), None)
    if found is None and named is not None:
        raise CheckpointError(
            f"{folder / 'last_checkpoint'} names {named or 'nothing'}, and no whole checkpoint is "
            "there to resume from; give --resume PATH, or remove that file to begin anew"
        )
    return found
