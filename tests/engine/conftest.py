"""What tests of the engine share."""

import pytest

from snella_seg.engine import native


@pytest.fixture
def compiler():
    """Skips where the C library cannot be had."""
    try:
        native.library()
    except native.Unavailable as reason:
        pytest.skip(str(reason))
