"""Write a config for a folder of images and label maps: ``new.py DIR``.

The same as ``snella-seg new``; see ``snella_seg/cli/new.py``.
"""

from snella_seg.cli import main

if __name__ == "__main__":
    main("new")
