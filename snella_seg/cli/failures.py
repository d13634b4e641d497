"""How a tool ends when something is wrong: one line, exit status 1."""

import difflib
import functools
import inspect
import os
import re
import reprlib
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from typing import Any

#: How arguments are listed: long ones without their middle.
_SHORT = reprlib.Repr()
_SHORT.maxother = _SHORT.maxstring = 100

#: Part of what a library says, or of where it does -> what is to be done about it.
_REMEDIES = (
    (
        "stack expects each tensor to be equal size",
        "images of a batch differ in size: let the pipeline end on one size (RandomCrop, or Resize "
        "with keep_ratio=False), and set model.data_preprocessor.size to it",
    ),
    (
        "Expected more than 1 value per channel when training",
        "batch norm saw a single value: raise train_dataloader.batch_size, or give the head "
        "norm_cfg=dict(type='GN', num_groups=...)",
    ),
    (
        "weight tensor should be defined either for all or no classes",
        "class_weight of loss_decode needs one weight for each of the head's num_classes",
    ),
    (
        "Failed to import custom modules from",
        "custom_imports names a module that is not installed, or not in a folder of PYTHONPATH",
    ),
    (
        "environment variable RANK expected",
        "start --launcher pytorch by torchrun --nproc_per_node=N tools/train.py CONFIG, or leave "
        "it out",
    ),
    *(
        (
            sign,
            "the checkpoint to resume from had another optimizer, or other parameters in it: "
            "resume by the config of its run, or start from its weights by --cfg-options "
            "load_from=FILE",
        )
        for sign in ("loaded state dict", "KeyError in torch.optim")
    ),
)


def plain_errors(main: Callable[..., None]) -> Callable[..., None]:
    """Let a tool end with one line and exit status 1 on errors that the user can mend.

    SNELLA_TRACEBACK=1 shows where they come from.
    """

    @functools.wraps(main)
    def wrapper(argv: Sequence[str] | None = None) -> None:
        try:
            main(argv)
        except Exception as error:
            known = _can_be_mended(error) or _is_of_others(error)
            if os.environ.get("SNELLA_TRACEBACK") or not known:
                raise
            print(f"error: {_line(error)}", file=sys.stderr)
            sys.exit(1)

    return wrapper


def _can_be_mended(error: Exception) -> bool:
    """Whether an error tells of a wrong config, file or installation."""
    kinds = (OSError, ImportError, ValueError, TypeError)
    of_ours = type(error).__module__.startswith("snella_seg.")  # CheckpointError and the like
    unknown_type = isinstance(error, KeyError) and "registry" in str(error)
    return isinstance(error, kinds) or of_ours or unknown_type


def _line(error: Exception) -> str:
    """What to say of an error: itself, where it arose if not in this package, and a remedy."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if "Original Traceback" in str(error):  # of a dataloader's worker
        lines = lines[-1:]
    said = " ".join(line.strip() for line in lines)
    said = (_part_being_built(error, said) if _is_of_others(error) else "") + said
    if not _can_be_mended(error):
        said = f"{said} ({_place(error)})"
    for sign, remedy in _REMEDIES:
        if sign in said:
            return f"{textwrap.shorten(said, 200, placeholder=' ...')}; {remedy}"
    return said


def _place(error: Exception) -> str:
    frame, number = list(traceback.walk_tb(error.__traceback__))[-1]
    place = f"{frame.f_globals.get('__name__')}, line {number}"
    hint = "SNELLA_TRACEBACK=1 shows how it came there"
    return f"{type(error).__name__} in {place}; {hint}"


def _is_of_others(error: Exception) -> bool:
    """Whether an error arose outside of this package, from what it was given in most cases."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and not str(frames[-1].f_globals.get("__name__")).startswith("snella_seg")


def _part_being_built(error: Exception, said: str) -> str:
    """The registered class in whose constructor an error arose, and its arguments in question."""
    kind, given = None, {}
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "build_from_cfg":
            kind, given = frame.f_locals.get("obj_cls"), frame.f_locals.get("args", {})
    if not inspect.isclass(kind):
        return ""
    names = _in_question(kind, given, said)
    listed = " ".join(", ".join(f"{n}={_SHORT.repr(given[n])}" for n in names).split())
    return f"{kind.__name__} cannot be built as the config asks ({listed}): "


def _in_question(kind: type, given: dict, said: str) -> list[str]:
    """Arguments that an error speaks of, else those that look odd, else all."""
    from .config_checks import accepted_arguments, is_odd  # of mmengine, which doctor does without

    words = re.findall(r"\w+", said)
    hints = accepted_arguments(kind)
    plain = [name for name, value in given.items() if name != "params" and not callable(value)]
    named = [name for name in plain if difflib.get_close_matches(name, words, 1, 0.85)]
    odd = [name for name in plain if is_odd(given[name], hints.get(name, Any))]
    return named or odd or plain
