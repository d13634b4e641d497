"""Compiles the C sources at first use, keeps the library in the user's cache, and loads it."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from ..cache import cache_folder

SOURCES = tuple(Path(__file__).with_name(name) for name in ("distance.c", "packed.c", "sampled.c"))
#: ``SNELLA_NATIVE=0`` keeps to plain torch.
SWITCH = "SNELLA_NATIVE"
_FLAGS = ("-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
#: What not every compiler knows, the best first.
_TUNING = (("-march=native", "-mprefer-vector-width=512"), ("-march=native",), ())
_SECONDS = 120


class Unavailable(Exception):
    """The library cannot be had; says why."""


class Matrix(ctypes.Structure):
    """``matrix`` of ``distance.c``."""

    _fields_ = (
        *((n, ctypes.c_int64) for n in ("heads", "width", "outs", "columns", "kind")),
        *((n, ctypes.c_float) for n in ("scale", "alpha", "gamma", "beta")),
        ("p", ctypes.c_void_p),
        ("q", ctypes.c_void_p),
        ("by_column", ctypes.c_void_p * 2),
        ("by_output", ctypes.c_void_p),
    )


class Guess(ctypes.Structure):
    """``guess`` of ``distance.c``."""

    _fields_ = (
        *((n, ctypes.c_float) for n in ("low", "high", "scale")),
        ("base", ctypes.c_void_p),
        *((n, ctypes.c_int64) for n in ("base_stride", "capacity")),
        *((n, ctypes.c_void_p) for n in ("counts", "values", "places", "masks")),
    )


#: Arguments of each function: a matrix, guess, integer, float or pointer.
_SIGNATURES = {
    "snella_dense": "miippg",
    "snella_settle": "giiiifp",
    "snella_look": "piiiipffppip",
    "snella_merge": "piiiippiffp",
    "snella_again": "miiffpipipippppp",
    "snella_turn": "iipiiiip",
    "snella_sample": "iipiipiiippi",
    "snella_count": "iipip",
    "snella_pack": "iipippifip",
    "snella_unpack": "iipipppiipi",
}
_TYPES = {
    "m": ctypes.POINTER(Matrix),
    "g": ctypes.POINTER(Guess),
    "i": ctypes.c_int64,
    "f": ctypes.c_float,
    "p": ctypes.c_void_p,
}


def library() -> ctypes.CDLL:
    """The compiled library.

    Raises:
        Unavailable: when it is switched off, or there is no compiler, or that fails.
    """
    if os.environ.get(SWITCH, "1") == "0":
        raise Unavailable(f"{SWITCH}=0")
    found = _loaded()
    if isinstance(found, str):
        raise Unavailable(found)
    return found


@lru_cache(maxsize=1)
def _loaded() -> ctypes.CDLL | str:
    try:
        return _typed(_built())
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    except Unavailable as reason:
        return str(reason)


def _typed(loaded: ctypes.CDLL) -> ctypes.CDLL:
    for name, signature in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes = [_TYPES[letter] for letter in signature]
        function.restype = ctypes.c_int
    return loaded


def _compiler() -> str:
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise Unavailable("no C compiler (cc, gcc or clang)")


def _processor() -> str:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    kinds = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)}))


def _built() -> ctypes.CDLL:
    compiler = _compiler()
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=_SECONDS).stdout
    parts = (*(s.read_bytes() for s in SOURCES), compiler.encode(), version, _processor().encode())
    key = hashlib.sha256(b"\0".join([*parts, repr((_FLAGS, _TUNING)).encode()])).hexdigest()[:24]
    try:
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = folder / f"distance-{key}.so"
        if not target.is_file():
            _compile(compiler, target)
        return ctypes.CDLL(str(target))
    except (OSError, RuntimeError):  # no home, no room, or what lies there cannot be loaded
        with tempfile.TemporaryDirectory() as private:
            target = Path(private) / "distance.so"
            _compile(compiler, target)
            return ctypes.CDLL(str(target))


def _compile(compiler: str, target: Path) -> None:
    """Several processes may do so at once: each writes a file of its own and renames it."""
    handle, name = tempfile.mkstemp(suffix=".so", dir=target.parent)
    os.close(handle)
    try:
        for tuning in _TUNING:
            command = [compiler, *_FLAGS, *tuning, *map(str, SOURCES), "-o", name, "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
            if done.returncode == 0:
                os.replace(name, target)
                return
        raise Unavailable(f"{compiler} fails: {' '.join(done.stderr.split())[:200]}")
    finally:
        Path(name).unlink(missing_ok=True)
