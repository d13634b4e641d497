"""Show what is in an adapter file or a sparse delta: ``inspect_adapter.py FILE``.

The same as ``snella-seg inspect_adapter``; see ``snella_seg/cli/inspect_adapter.py``.
"""

from snella_seg.cli import main

if __name__ == "__main__":
    main("inspect_adapter")
