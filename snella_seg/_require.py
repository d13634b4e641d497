"""One clear line when the OpenMMLab packages are not there."""

import importlib.util


def require_mmseg() -> None:
    """Raise ImportError naming the extra to install, unless mmengine, mmcv and mmseg are there."""
    missing = [n for n in ("mmengine", "mmcv", "mmseg") if importlib.util.find_spec(n) is None]
    if missing:
        raise ImportError(
            f"this part of snella_seg needs {', '.join(missing)}: pip install 'snella_seg[mm]' "
            "(or keep your own OpenMMLab packages and install what they lack)"
        )
