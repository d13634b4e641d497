"""Test a segmentor: ``python tools/test.py CONFIG CHECKPOINT``. Options as of mmseg's test.py.

The same as ``snella-seg test``; see ``snella_seg/cli/test.py``.
"""

from snella_seg.cli import main

if __name__ == "__main__":
    main("test")
