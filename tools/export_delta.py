"""Write only the changed weights of a backbone: ``export_delta.py CONFIG CHECKPOINT OUT``.

The same as ``snella-seg export_delta``; see ``snella_seg/cli/export_delta.py``.
"""

from snella_seg.cli import main

if __name__ == "__main__":
    main("export_delta")
