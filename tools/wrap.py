"""Turn a stock config into a SNELLA config: ``wrap.py STOCK_CONFIG OUT.py``.

The same as ``snella-seg wrap``; see ``snella_seg/cli/wrap.py``.
"""

from snella_seg.cli import main

if __name__ == "__main__":
    main("wrap")
