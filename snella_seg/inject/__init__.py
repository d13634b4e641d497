"""Where adapters go: which matrices a backbone has, which are adapted, what else is trained."""

from .accumulation import (
    accumulate_gradients,
    drop_gradients,
    restore_sums,
    settle_gradients,
    waiting_sums,
)
from .attach import (
    adapted_weights,
    adapter_keys,
    adapter_options,
    adapters_disabled,
    add_adapters,
    attach_adapters,
    base_state,
    detach_adapters,
    is_adapter_key,
    list_adapters,
    make_adapters,
    set_adapters_enabled,
)
from .coverage import Coverage, LeftOut
from .families import FAMILIES, KINDS, Family, family_of
from .freeze import AUTO_TRAINABLE, covers, freeze_base, is_output_norm
from .methods import METHODS, Method, allocation_mode, get_method, method_name, settle
from .summary import sparsity_by_kind, summarize
from .targets import Matrix, cover, find_matrices, select_matrices

__all__ = [
    "AUTO_TRAINABLE",
    "FAMILIES",
    "KINDS",
    "METHODS",
    "Coverage",
    "Family",
    "LeftOut",
    "Matrix",
    "Method",
    "accumulate_gradients",
    "adapted_weights",
    "adapter_keys",
    "adapter_options",
    "adapters_disabled",
    "add_adapters",
    "allocation_mode",
    "attach_adapters",
    "base_state",
    "cover",
    "covers",
    "detach_adapters",
    "drop_gradients",
    "family_of",
    "find_matrices",
    "freeze_base",
    "get_method",
    "method_name",
    "is_adapter_key",
    "is_output_norm",
    "list_adapters",
    "make_adapters",
    "restore_sums",
    "select_matrices",
    "set_adapters_enabled",
    "settle",
    "settle_gradients",
    "sparsity_by_kind",
    "summarize",
    "waiting_sums",
]
