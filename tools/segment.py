"""Segment an image for several tasks over one base: ``segment.py IMAGE TASK.safetensors ...``.

The same as ``snella-seg segment``; see ``snella_seg/cli/segment.py``.
"""

from snella_seg.cli import main

if __name__ == "__main__":
    main("segment")
