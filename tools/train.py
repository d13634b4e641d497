"""Train a segmentor: ``python tools/train.py CONFIG``. Options as of mmseg's tools/train.py.

The same as ``snella-seg train``; see ``snella_seg/cli/train.py``.
"""

from snella_seg.cli import main

if __name__ == "__main__":
    main("train")
