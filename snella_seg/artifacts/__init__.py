"""What a training run leaves and what is done with it: adapter files, merged models, sparse deltas,
several tasks over one base."""

from .. import _require  # noqa: F401
from .adapter_file import AdapterFile, load_adapter, read_adapter, save_adapter
from .compose import adapter_overlap, combine_adapters
from .merge import (
    half_precision_loss,
    merge_adapters,
    merged_backbone,
    merged_segmentor,
    stock_config,
    unmerge_adapters,
)
from .sparse_delta import (
    SparseDelta,
    apply_delta,
    load_delta,
    make_delta,
    remove_delta,
    save_delta,
)
from .state import find_wrapper, find_wrappers, strip_frozen, task_state
from .switch import AdapterSwitch

__all__ = [
    "AdapterFile",
    "AdapterSwitch",
    "SparseDelta",
    "adapter_overlap",
    "apply_delta",
    "combine_adapters",
    "find_wrapper",
    "find_wrappers",
    "half_precision_loss",
    "load_adapter",
    "load_delta",
    "make_delta",
    "merge_adapters",
    "merged_backbone",
    "merged_segmentor",
    "read_adapter",
    "remove_delta",
    "save_adapter",
    "save_delta",
    "stock_config",
    "strip_frozen",
    "task_state",
    "unmerge_adapters",
]
