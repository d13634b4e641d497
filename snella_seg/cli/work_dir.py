"""The folder of a run: where it is, and that no other run writes into it."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from ..loading.files import make_folder

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


def set_work_dir(cfg: Config, work_dir: str | None, config_path: str) -> None:
    """Decide the work dir as mmseg does: argument, then config, then the config's name."""
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("work_dirs") / Path(config_path).stem)


@contextlib.contextmanager
def locked(work_dir: str) -> Iterator[None]:
    """Within this context no second training starts in a work dir; their histories would mix.

    The system gives the lock back when the process ends, however it ends, so a crashed run bars
    nobody. File systems that cannot lock are let pass.

    Raises:
        ValueError: when another run is at work there.
        OSError: when the folder cannot be made or written to.
    """
    if fcntl is None or _rank() > 0:
        yield
        return
    folder = make_folder(work_dir)
    with open(folder / LOCK, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"{folder} is in use by another run ({file.read().strip() or 'unknown'}): give "
                "--work-dir another folder, or end that run first"
            ) from None
        except OSError:
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:  # workers that outlive a failed run for a moment have inherited the lock
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)


def _rank() -> int:
    """Of this process among those of a launcher, which need not have met yet."""
    known = (os.environ.get(name) for name in ("RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"))
    return int(next(filter(None, known), 0))
