"""Export a merged model to ONNX or torch.export: ``export.py CONFIG CHECKPOINT OUT.onnx``.

The same as ``snella-seg export``; see ``snella_seg/cli/export.py``.
"""

from snella_seg.cli import main

if __name__ == "__main__":
    main("export")
