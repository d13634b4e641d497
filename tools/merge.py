"""Merge a task into a stock model: ``merge.py CONFIG CHECKPOINT OUT_DIR``.

The same as ``snella-seg merge``; see ``snella_seg/cli/merge.py``.
"""

from snella_seg.cli import main

if __name__ == "__main__":
    main("merge")
