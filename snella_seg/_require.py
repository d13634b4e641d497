"""One clear line when the OpenMMLab packages are not there.

Subpackages that need them import this module before anything else.
"""

import importlib.util


def require_mmseg() -> None:
    """Raise ImportError naming the extra to install, unless mmengine, mmcv and mmseg are there."""
    missing = [name for name in ("mmengine", "mmcv", "mmseg") if not _is_there(name)]
    if missing:
        raise ImportError(
            f"this part of snella_seg needs {', '.join(missing)}: pip install 'snella_seg[mm]' "
            "(or keep your own OpenMMLab packages and install what they lack)"
        )


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


require_mmseg()
