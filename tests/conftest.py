import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and reference values; tests that need it skip without it."""
    folder = Path(os.environ.get("SNELLA_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs the shared data folder (SNELLA_SHARED), not at {folder}")
    return folder
