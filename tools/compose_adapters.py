"""Compare two tasks, or put them together: ``compose_adapters.py FIRST SECOND``.

The same as ``snella-seg compose_adapters``; see ``snella_seg/cli/compose_adapters.py``.
"""

from snella_seg.cli import main

if __name__ == "__main__":
    main("compose_adapters")
