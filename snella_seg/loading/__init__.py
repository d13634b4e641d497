"""How weights come in: base weights under any names, what must be complete, headers, files."""

from ..configs import require_mmseg

require_mmseg()

from .base_weights import fit_base_file, init_base_weights  # noqa: E402
from .completeness import BaseFit, check_adapters, check_base, fit_base  # noqa: E402
from .errors import CheckpointError, some  # noqa: E402
from .files import (  # noqa: E402
    atomic_write,
    check_checkpoint,
    holds_adapters,
    latest_checkpoint,
    load_safetensors,
    make_folder,
    save_safetensors,
    write_text,
)
from .state_dict import load_base, take_in  # noqa: E402

__all__ = [
    "BaseFit",
    "CheckpointError",
    "atomic_write",
    "check_adapters",
    "check_base",
    "check_checkpoint",
    "fit_base",
    "fit_base_file",
    "holds_adapters",
    "init_base_weights",
    "latest_checkpoint",
    "load_base",
    "load_safetensors",
    "make_folder",
    "save_safetensors",
    "some",
    "take_in",
    "write_text",
]
