"""In what tiles the Triton kernels work on a GPU: as chosen for it before, else the defaults.

Tiles decide in which order sums are taken, hence the last bits. So they are not chosen by a clock
while a model trains: ``snella-seg doctor --tune`` measures once and writes the choice down for this
GPU and version of Triton, and every later process reads it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

from ..cache import cache_folder, keep
from .language import triton


@dataclass(frozen=True)
class Tile:
    """A tile of a program, in rows (outputs) and columns (inputs), and its warps of threads."""

    outs: int
    ins: int
    warps: int

    def __str__(self) -> str:
        return f"{self.outs}x{self.ins}/{self.warps}"


@dataclass(frozen=True)
class Tiling:
    """Tiles of the kernels that make a matrix entry by entry, and of the factors' gradients.

    The latter by default the largest of :data:`CHOICES` that makes do with 128 registers a thread,
    and spills none, on sm_80 and sm_90.
    """

    entries: Tile = Tile(64, 32, 4)
    factors: Tile = Tile(32, 32, 8)

    def __str__(self) -> str:
        return f"{self.entries} and {self.factors}"


#: Tiles to choose from, the default first.
CHOICES: dict[str, tuple[Tile, ...]] = {
    "entries": (Tile(64, 32, 4), Tile(32, 64, 4), Tile(64, 64, 8), Tile(32, 32, 4)),
    "factors": (Tile(32, 32, 8), Tile(64, 32, 8), Tile(32, 64, 8), Tile(32, 32, 4)),
}


def tiles_file() -> Path:
    """Where choices are written down."""
    return cache_folder() / "tiles.json"


def tiling_key(device: torch.device, kind: str) -> str:
    """What a choice is for: a kind of GPU, a version of Triton, a kind of kernel."""
    return f"{torch.cuda.get_device_name(device)}, Triton {triton.__version__}, {kind}"


_tried: list[Tiling] = []


@contextmanager
def trying(tiles: Tiling) -> Iterator[None]:
    """Work in these tiles, to see how long that takes."""
    _tried.append(tiles)
    try:
        yield
    finally:
        _tried.pop()


def tiles_for(device: torch.device, kind: str) -> Tiling:
    """The tiles in which a kind of kernel works on a device, the same as long as a process lives.

    A file that cannot be read, or holds no tiles of :data:`CHOICES`, is as none.
    """
    if _tried:
        return _tried[-1]
    return _chosen(device, kind) if device.type == "cuda" else Tiling()


@cache
def _chosen(device: torch.device, kind: str) -> Tiling:
    chosen = _written_down().get(tiling_key(device, kind), {})
    try:
        found = {name: Tile(**chosen[name]) for name in CHOICES}
    except (KeyError, TypeError):
        return Tiling()
    return Tiling(**found) if all(found[n] in CHOICES[n] for n in CHOICES) else Tiling()


def _written_down() -> dict[str, dict[str, dict[str, int]]]:
    try:
        found = json.loads(tiles_file().read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_down(key: str, chosen: Tiling) -> None:
    """Let later processes work in these tiles.

    Raises:
        OSError: where the user's cache cannot be written.
    """
    keep(tiles_file(), json.dumps({**_written_down(), key: asdict(chosen)}, indent=1))
    _chosen.cache_clear()
