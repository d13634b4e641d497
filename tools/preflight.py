"""Look at a training before it runs: ``python tools/preflight.py CONFIG``.

The same as ``snella-seg preflight``; see ``snella_seg/cli/preflight.py``.
"""

from snella_seg.cli import main

if __name__ == "__main__":
    main("preflight")
