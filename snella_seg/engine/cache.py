"""Where what was compiled or measured on this machine is kept for later processes."""

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """``snella_seg`` in the user's cache (``XDG_CACHE_HOME``); it need not exist."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "snella_seg"


def keep(path: Path, text: str) -> None:
    """Write a file that other processes may read or write meanwhile: they see all of it or none.

    Raises:
        OSError: where the folder cannot be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
