"""What is done with what a run leaves: adapter files, merging, sparse deltas, several tasks."""

from ..configs import require_mmseg

require_mmseg()

from ..models import find_wrapper, find_wrappers, strip_frozen, task_state  # noqa: E402
from .adapter_file import AdapterFile, read_adapter, save_adapter  # noqa: E402
from .adapter_loading import load_adapter  # noqa: E402
from .compose import adapter_overlap, combine_adapters  # noqa: E402
from .exportable import Deployable  # noqa: E402
from .exporting import ExportReport, export_segmentor  # noqa: E402
from .merging import (  # noqa: E402
    half_precision_loss,
    merge_adapters,
    merged_backbone,
    merged_segmentor,
    stock_config,
    unmerge_adapters,
)
from .proving import Proof  # noqa: E402
from .sparse_delta import (  # noqa: E402
    SparseDelta,
    apply_delta,
    load_delta,
    make_delta,
    remove_delta,
    save_delta,
)
from .stock_head import fold_linear_heads, stock_linear_head  # noqa: E402
from .switch import AdapterSwitch  # noqa: E402

__all__ = [
    "AdapterFile",
    "AdapterSwitch",
    "Deployable",
    "ExportReport",
    "Proof",
    "SparseDelta",
    "adapter_overlap",
    "apply_delta",
    "combine_adapters",
    "export_segmentor",
    "find_wrapper",
    "find_wrappers",
    "fold_linear_heads",
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
    "stock_linear_head",
    "strip_frozen",
    "task_state",
    "unmerge_adapters",
]
