"""See whether deltas are made right on this machine, and by what: ``doctor.py``.

The same as ``snella-seg doctor``; see ``snella_seg/cli/doctor.py``.
"""

from snella_seg.cli import main

if __name__ == "__main__":
    main("doctor")
