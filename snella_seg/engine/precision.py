"""In which precision products run here and now, and what deltas need."""

from typing import Any

import torch
from torch import Tensor

from ..functional.delta import HALF


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype of products under automatic mixed precision; None where that is off."""
    if hasattr(torch, "get_autocast_dtype"):
        enabled = torch.is_autocast_enabled(device_type)
        return torch.get_autocast_dtype(device_type) if enabled else None
    if device_type == "cpu":  # torch < 2.4
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None


def product_dtype(weight: Tensor) -> torch.dtype:
    """In which precision a product with ``weight`` runs here and now."""
    half = autocast_dtype(weight.device.type)
    return weight.dtype if half is None or weight.dtype == torch.float64 else half


def reduces_single_precision(device_type: str) -> bool:
    """Whether single-precision products run in TF32 or bfloat16 on a kind of device.

    torch 2.9 replaced ``torch.set_float32_matmul_precision`` and ``allow_tf32`` by a setting per
    backend, ``fp32_precision``, which also follows the older ones. Reading the older ones after the
    newer have been set is an error, so they are read in older versions only.
    """
    backend = torch.backends.cuda if device_type == "cuda" else torch.backends.mkldnn
    matmul: Any = getattr(backend, "matmul", None)
    if hasattr(matmul, "fp32_precision"):
        return matmul.fp32_precision in ("tf32", "bf16")
    return torch.get_float32_matmul_precision() != "highest"


def merging_loses_deltas(weight: Tensor) -> bool:
    """Whether a product with ``weight`` runs here in less than its single precision."""
    dtype = product_dtype(weight)
    if dtype == torch.float32:
        return reduces_single_precision(weight.device.type)
    return dtype in HALF


def full_precision(device: torch.device) -> torch.autocast:
    """A context without automatic mixed precision."""
    return torch.autocast(device.type, enabled=False)
