"""Where base configs lie: those of the installed mmsegmentation, and ours.

Use them in the ``_base_`` of a config, as an expression (mmengine reads it before anything else)::

    _base_ = __import__('snella_seg').own('snella_upernet_ade20k.py')
"""

import difflib
import importlib.util
from pathlib import Path


def stock(*names: str) -> list[str]:
    """Absolute paths of configs of the installed mmsegmentation.

    Args:
        names: paths within its ``configs`` folder, such as ``'_base_/datasets/ade20k.py'``.

    Raises:
        ImportError: when mmsegmentation is not installed.
        FileNotFoundError: when a config is not there; names near it are listed.
    """
    spec = importlib.util.find_spec("mmseg")
    if spec is None:
        raise ImportError("mmsegmentation is not installed: pip install 'snella_seg[mm]'")
    package = Path(spec.origin).parent
    return _find((package / ".mim" / "configs", package.parent / "configs"), names)


def own(*names: str) -> list[str]:
    """Absolute paths of snella_seg's configs, in a checkout or an installed package.

    Args:
        names: paths within our ``configs`` folder, such as ``'snella_upernet_ade20k.py'``.

    Raises:
        FileNotFoundError: when a config is not there; names near it are listed.
    """
    package = Path(__file__).resolve().parent
    return _find((package / ".mim" / "configs", package.parent / "configs"), names)


def tool(name: str) -> str:
    """Absolute path of one of our tools, in a checkout or an installed package.

    Args:
        name: such as ``'train.py'``.

    Raises:
        FileNotFoundError: when there is no such tool.
    """
    package = Path(__file__).resolve().parent
    return _find((package / ".mim" / "tools", package.parent / "tools"), (name,), "tool")[0]


def _find(folders: tuple[Path, ...], names: tuple[str, ...], what: str = "config") -> list[str]:
    if not names:
        raise ValueError("name at least one config")
    folder = next((f for f in folders if f.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(f"no folder at {' or '.join(map(str, folders))}")
    for name in names:
        if not (folder / name).is_file():
            parent = (folder / name).parent
            beside = sorted(p.name for p in parent.glob("*.py")) if parent.is_dir() else []
            near = difflib.get_close_matches(Path(name).name, beside, cutoff=0.3) or beside[:8]
            raise FileNotFoundError(
                f"no {what} {name} in {folder}"
                + (f"; near matches: {', '.join(near)}" if near else "")
            )
    return [str(folder / name) for name in names]
