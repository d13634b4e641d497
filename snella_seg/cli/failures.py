"""How a tool ends when something is wrong: one line, exit status 1."""

import functools
import os
import sys
import traceback
from collections.abc import Callable, Sequence


def plain_errors(main: Callable[..., None]) -> Callable[..., None]:
    """Let a tool end with one line and exit status 1 on errors that the user can mend.

    SNELLA_TRACEBACK=1 shows where they come from.
    """

    @functools.wraps(main)
    def wrapper(argv: Sequence[str] | None = None) -> None:
        try:
            main(argv)
        except Exception as error:
            part = _part_being_built(error)
            mended = _can_be_mended(error)
            if os.environ.get("SNELLA_TRACEBACK") or not (mended or part):
                raise
            lines = str(error).strip().splitlines() or [type(error).__name__]
            if "Original Traceback" in str(error):  # of a dataloader's worker
                lines = lines[-1:]
            if not mended:
                lines.insert(0, f"{part} cannot be built of the config, {type(error).__name__}:")
            print(f"error: {' '.join(line.strip() for line in lines)}", file=sys.stderr)
            sys.exit(1)

    return wrapper


def _can_be_mended(error: Exception) -> bool:
    """Whether an error tells of a wrong config, file or installation."""
    kinds = (OSError, ImportError, ValueError, TypeError)
    of_ours = type(error).__module__.startswith("snella_seg.")  # CheckpointError and the like
    unknown_type = isinstance(error, KeyError) and "registry" in str(error)
    return isinstance(error, kinds) or of_ours or unknown_type


def _part_being_built(error: Exception) -> str | None:
    """The registered class in whose constructor an error arose, which a config asked for."""
    kind = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "build_from_cfg":
            kind = frame.f_locals.get("obj_cls")
    return getattr(kind, "__name__", None)
