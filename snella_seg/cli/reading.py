"""Reading a config as all tools do."""

import argparse
import importlib
import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.logging import print_log

from ..configs import type_name
from ..inject import get_method, method_name
from ..loading import CheckpointError, holds_adapters


class Overrides(DictAction):
    """``KEY=VALUE ...`` as a dict; what is no such pair ends the parser with a line."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        odd = [value for value in values if "=" not in value]
        if odd:
            raise argparse.ArgumentError(self, f"expected KEY=VALUE, got {odd[0]!r}")
        super().__call__(parser, namespace, values, option_string)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Let a tool take ``--cfg-options``, as those of mmseg do."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=Overrides,
        metavar="KEY=VALUE",
        help="override settings of the config, such as train_cfg.max_iters=1000",
    )


def run_preparation(cfg: Config) -> None:
    """Run the function that a config names in ``prepare = 'module:function'``, if it does.

    Raises:
        ValueError: when there is no such function.
    """
    if not cfg.get("prepare"):
        return
    try:
        module, _, name = cfg.prepare.partition(":")
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"prepare={cfg.prepare!r} must be 'module:function': {error}") from error
    function(cfg)


#: Scope of a registry, or a class of mmseg that needs it -> module and how to install it.
_MMDET = ("mmdet", "onedl-mmdetection")
_PACKAGES = {
    "mmdet": _MMDET,
    "MaskFormerHead": _MMDET,
    "Mask2FormerHead": _MMDET,
    "mmpretrain": ("mmpretrain", "onedl-mmpretrain"),
}


def need_packages(path: str | Path) -> None:
    """See that the other OpenMMLab packages are there which a config of mmseg asks for.

    Raises:
        ImportError: naming the package to install.
    """
    cfg = Config.fromfile(path, import_custom_modules=False)
    for name in _types(cfg.get("model")):
        module, package = _PACKAGES.get(name, _PACKAGES.get(name.partition(".")[0], ("", "")))
        if module and importlib.util.find_spec(module) is None:
            raise ImportError(
                f"{name} of {Path(path).name} needs {module}: pip install {package} (or {module}, "
                "beside the original OpenMMLab packages)"
            )


def _types(node: Any) -> Iterator[str]:
    """All types that a part of a config asks for by name."""
    if isinstance(node, dict):
        if isinstance(node.get("type"), str):
            yield node["type"]
        for value in node.values():
            yield from _types(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _types(value)


def require_suffix(path: Path, suffix: str) -> None:
    """Refuse to write a file under the name of another kind.

    Raises:
        ValueError: naming both.
    """
    if path.suffix != suffix:
        raise ValueError(f"{path} will be a {suffix} file, name it so: {path.with_suffix(suffix)}")


def check_hooks(cfg: Config) -> None:
    """See that matrices can compete where the method lets them.

    Raises:
        ValueError: when SparsityAllocationHook is there twice, or would let the budget grow;
            without one there is a warning.
    """
    backbone = cfg.model.get("backbone") or {}
    if type_name(backbone) != "SnellaBackbone":
        return
    listed = [*(cfg.get("custom_hooks") or []), *(cfg.get("default_hooks") or {}).values()]
    count = sum(type_name(hook) == "SparsityAllocationHook" for hook in listed if hook)
    name = method_name(backbone)
    targets = backbone.get("targets", "auto")
    starts = (backbone.get("adapter") or {}).get("initial_sparsity", 0.0)
    for hook in listed if get_method(name).allocation in ("competition", "uniform") else ():
        ends = hook.get("target_sparsity", 0.8) if hook else 1.0
        grows = type_name(hook) == "SparsityAllocationHook" and isinstance(starts, float)
        if grows and isinstance(ends, float) and 1 > starts > ends:
            raise ValueError(
                f"adapter.initial_sparsity {starts} is above target_sparsity {ends} of "
                "SparsityAllocationHook, so the budget would grow: lower the one or raise the other"
            )
    if count > 1:
        raise ValueError(f"custom_hooks holds SparsityAllocationHook {count} times; keep one")
    if count == 0 and get_method(name).allocation is not None and len(targets):
        print_log(
            f"method={name!r} without a SparsityAllocationHook: matrices do not compete, all "
            "sparsities stay as they begin (custom_hooks)",
            level=logging.WARNING,
        )


def refuse_without_adapters(cfg: Config, checkpoint: str) -> None:
    """Refuse to use untrained adapters on top of a plain checkpoint, such as a merged one.

    Raises:
        CheckpointError: when the config adapts the backbone, and the checkpoint has no adapters.
    """
    backbone = cfg.model.get("backbone") or {}
    if type_name(backbone) != "SnellaBackbone" or checkpoint.endswith(".safetensors"):
        return
    adapts = get_method(method_name(backbone)).adapts
    if adapts and holds_adapters(checkpoint) is False:
        raise CheckpointError(
            f"{checkpoint} holds no adapters (a merged, stock or fully tuned model), and this "
            "config's would be untrained: use the config that lies beside it"
        )
