"""Compare ways of tuning a backbone: ``python tools/compare.py CONFIG --methods lora snella``.

The same as ``snella-seg compare``; see ``snella_seg/cli/compare.py``.
"""

from snella_seg.cli import main

if __name__ == "__main__":
    main("compare")
