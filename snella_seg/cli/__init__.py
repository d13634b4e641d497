"""The command line, ``snella-seg COMMAND``: a module for each command, and what they share.

``tools/COMMAND.py`` are doors to the same functions, where users of mmsegmentation look for them.
"""

import importlib
import sys
from collections.abc import Sequence

#: Command -> what it does.
COMMANDS = {
    "new": "write a config for a folder of images and label maps",
    "wrap": "turn a stock config into a SNELLA config",
    "train": "train a segmentor",
    "test": "score a checkpoint or an adapter file",
    "preflight": "look at a training before it runs",
    "compare": "compare ways of tuning a backbone on a config",
    "report": "show where a run's budget went, and why",
    "segment": "segment images, for one task or for several over one base",
    "export": "export a merged model to ONNX or torch.export",
    "merge": "merge a task into a stock checkpoint and config",
    "export_adapter": "write a task as an adapter file",
    "export_delta": "write only the changed weights of a backbone",
    "inspect_adapter": "show what is in an adapter file or a sparse delta",
    "compose_adapters": "compare two tasks, or put them together",
    "doctor": "see whether deltas are made right on this machine, and by what",
}
#: Commands that do without the OpenMMLab packages.
BARE = {"doctor"}


def main(command: str | None = None, argv: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        command: a name in :data:`COMMANDS`; None for the first of ``argv``.
        argv: its arguments; None for those that the process was called with.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if command is None:
        if not argv or argv[0] in ("-h", "--help"):
            print(usage())
            return
        command, argv = argv[0].replace("-", "_"), argv[1:]
        sys.argv[0] = f"snella-seg {command}"  # how the command calls itself in its usage
    if command not in COMMANDS:
        sys.exit(f"error: unknown command {command!r}; choose one of {', '.join(COMMANDS)}")
    try:
        if command not in BARE:
            importlib.import_module("snella_seg.register")
        module = importlib.import_module(f"snella_seg.cli.{command}")
    except ImportError as missing:
        sys.exit(f"error: {missing}")
    module.main(argv)


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {about}" for name, about in COMMANDS.items()]
    return "\n".join(
        [
            "usage: snella-seg COMMAND ...",
            "",
            *lines,
            "",
            "snella-seg COMMAND -h tells the options.",
        ]
    )
