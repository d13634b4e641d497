"""Write a task as an adapter file: ``export_adapter.py CONFIG CHECKPOINT OUT.safetensors``.

The same as ``snella-seg export_adapter``; see ``snella_seg/cli/export_adapter.py``.
"""

from snella_seg.cli import main

if __name__ == "__main__":
    main("export_adapter")
