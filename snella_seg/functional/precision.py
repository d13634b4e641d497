"""In which precision products run here and now, and what deltas need."""

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def in_working_precision(params: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Tensors in half precision become single, others stay."""
    return tuple(p.float() if p.dtype in HALF else p for p in params)


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


def merging_loses_deltas(weight: Tensor) -> bool:
    """Whether a product with ``weight`` runs here in less than its single precision."""
    dtype = product_dtype(weight)
    reduced = dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return dtype in HALF or reduced


def full_precision(device: torch.device):
    """A context without automatic mixed precision."""
    return torch.autocast(device.type, enabled=False)
