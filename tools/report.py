"""Show where a run's budget went, and why: ``report.py WORK_DIR`` writes a page and pictures.

The same as ``snella-seg report``; see ``snella_seg/cli/report.py``.
"""

from snella_seg.cli import main

if __name__ == "__main__":
    main("report")
