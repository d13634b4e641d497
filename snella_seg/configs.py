"""Where base configs lie: those of the installed mmsegmentation, and ours; and how types read.

Use them in the ``_base_`` of a config, as an expression (mmengine reads it before anything else)::

    _base_ = __import__('snella_seg').own('snella_upernet_ade20k.py')
"""

import difflib
import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmengine.config import Config


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


def load_config(path: str | Path, options: dict[str, Any] | None = None) -> "Config":
    """Read a config, merge ``--cfg-options`` into it, and find the files that it names.

    A relative path of weights or data is looked for where the process stands, then in the folder
    of the config and in the folders above that; so a config works from anywhere, and so does one
    that a run left in its work dir.

    Args:
        path: of the config.
        options: keys with dots -> values.

    Raises:
        FileNotFoundError: when it is not there.
        ValueError: when it cannot be read, has no model, or an option is a slip of the pen.
    """
    from mmengine.config import Config
    from mmengine.utils import import_modules_from_strings

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"config not found: {path}")
    if path.suffix not in (".py", ".json", ".yaml", ".yml"):
        raise ValueError(f"config {path}: configs are .py, .json or .yaml files")
    try:
        cfg = Config.fromfile(path)
    except SyntaxError as error:
        raise ValueError(
            f"config {path}: {error.msg}, see {(error.text or '').strip()!r}"
        ) from None
    except RecursionError:
        raise ValueError(f"config {path}: its _base_ leads back to itself") from None
    except (FileNotFoundError, ImportError):
        raise  # they say what is missing
    except Exception as error:  # whatever the config's own code may raise
        raise ValueError(
            f"config {path}{_line_of(error)}: {type(error).__name__}: {error}"
        ) from error
    if not cfg.get("model"):
        raise ValueError(f"config {path} has no model: it must hold one, or inherit it by _base_")
    if options:
        check_overrides(cfg, options)
        cfg.merge_from_dict(options)
        imports = cfg.get("custom_imports")
        if imports and any(key.startswith("custom_imports") for key in options):
            if not isinstance(imports, dict):
                raise ValueError(f"custom_imports must be a dict, got {imports!r}")
            import_modules_from_strings(**imports)
    find_files(cfg, path.resolve().parent)
    return cfg


def _line_of(error: Exception) -> str:
    """Where in a config an error arose, for a message."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.name == "<module>" and f.filename not in (__file__, sys.argv[0])]
    last = own[-1] if own else None
    return f" ({Path(last.filename).name}, line {last.lineno})" if last is not None else ""


#: How alike a key of ``--cfg-options`` and one of the config have to be for the one to be a slip.
_ALIKE = 0.8


def check_overrides(cfg: "Config", options: dict[str, Any]) -> None:
    """Refuse overrides whose key is nowhere in a config, but nearly.

    mmengine adds what it does not find, so a slip of the pen would change nothing, silently. Keys
    that resemble none are let pass, but for those at the top that no tool reads: a config need not
    name what it leaves at its default.

    Raises:
        ValueError: naming the key and the one that was probably meant.
    """
    for key in options:
        node: Any = cfg
        for depth, part in enumerate(key.split(".")):
            if isinstance(node, (list, tuple)):
                if not part.isdigit() or int(part) >= len(node):
                    raise ValueError(
                        f"--cfg-options {key}: {part!r} is no place in a list of {len(node)}"
                    )
                node = node[int(part)]
                continue
            if not hasattr(node, "keys"):
                break
            if part not in node:
                known = {str(k) for k in node.keys()} | (keys_at_top() if depth == 0 else set())
                near = difflib.get_close_matches(part, sorted(known), 1, _ALIKE)
                if part not in known and (near or depth == 0):
                    hint = f"did you mean {near[0]!r}?" if near else "and no tool reads it"
                    raise ValueError(f"--cfg-options {key}: the config has no {part!r}, {hint}")
                break
            node = node[part]


#: Keys at the top that a config may do without.
RUN_KEYS = [
    *("load_from", "resume", "work_dir", "randomness", "param_scheduler", "custom_hooks"),
    *("compile", "custom_imports", "default_scope", "find_unused_parameters", "log_level"),
    *("model_wrapper_cfg", "prepare", "runner_type", "source", "strategy", "tta_model"),
    *("tta_pipeline", "train_pipeline", "val_pipeline", "test_pipeline"),
]


def keys_at_top() -> set[str]:
    """What tools and mmengine's Runner read at the top of a config."""
    from mmengine.runner import Runner

    return {*inspect.signature(Runner.__init__).parameters, *RUN_KEYS} - {"self", "cfg"}


#: Keys of a config that hold the path of weights, a folder or a list of files.
_PATHS = (
    "checkpoint",
    "base_checkpoint",
    "pretrained",
    "checkpoint_path",
    "load_from",
    "data_root",
)


def find_files(node: Any, folder: Path) -> None:
    """Make relative paths in a config absolute where they lead somewhere only from elsewhere.

    Args:
        node: a config or a part of it, changed in place.
        folder: where to look, and in all folders above it, for what is not found from here.
    """
    if hasattr(node, "items"):  # a dict or a Config
        for key, value in node.items():
            if key in _PATHS and isinstance(value, str):
                node[key] = find_file(value, folder)
            else:
                find_files(value, folder)
    elif isinstance(node, (list, tuple)):
        for value in node:
            find_files(value, folder)


def find_file(path: str, folder: Path) -> str:
    """A path that leads somewhere: as it is if it does, else from a folder or one above it.

    Args:
        path: of a file or folder. An URL, an absolute path, and one that leads nowhere at all stay
            as they are.
        folder: where to look besides the current directory.
    """
    if not path or "://" in path or Path(path).is_absolute() or Path(path).exists():
        return path
    for above in (folder, *folder.parents):
        if (above / path).exists():
            return str(above / path)
    return path


def type_name(config: Any) -> str:
    """The name of the class that a part of a config asks for, however it is written.

    Args:
        config: a dict with a ``type``: the name of a class, its dotted path, or the class itself,
            as configs in Python (``read_base()``) have it. Or such a type.

    Returns:
        The bare name; empty where there is no type.
    """
    kind = config.get("type") if isinstance(config, dict) else config
    if kind is None:
        return ""
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
    return name.rpartition(".")[2]


def replace_type(node: Any, old: str, new: str) -> None:
    """Let all parts of a config that ask for one class ask for another, in place."""
    if isinstance(node, dict):
        if type_name(node) == old:
            node["type"] = new
        for value in node.values():
            replace_type(value, old, new)
    elif isinstance(node, (list, tuple)):
        for value in node:
            replace_type(value, old, new)


def require_mmseg() -> None:
    """Raise ImportError naming the extra to install, unless mmengine, mmcv and mmseg are there.

    Packages that need them call this before they import anything of theirs.
    """
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
