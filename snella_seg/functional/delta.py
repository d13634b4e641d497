"""From factors to the sparse weight change of one matrix."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .kernels import get_kernel
from .sparsify import apply_threshold, get_sparsifier
from .threshold import quantile_threshold

HALF = (torch.float16, torch.bfloat16)


def in_working_precision(params: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Tensors in half precision become single, others stay."""
    return tuple(p.float() if p.dtype in HALF else p for p in params)


@dataclass(frozen=True)
class DeltaRule:
    """How a delta is made: ``delta = sparsify(kernel(P, Q, *scalars), sparsity, sparsifier)``.

    Parameters in half precision are worked on in single precision.

    Args:
        kernel: a name in :data:`snella_seg.functional.KERNELS`.
        sparsifier: a name in :data:`snella_seg.functional.SPARSIFIERS`.
        scale: weight of each head of the distance kernel, or of the linear kernel's product.

    Raises:
        ValueError: on names that are not registered.
    """

    kernel: str = "mixed"
    sparsifier: str = "weighted"
    scale: float = 0.1

    def __post_init__(self) -> None:
        get_kernel(self.kernel), get_sparsifier(self.sparsifier)

    @property
    def competes(self) -> bool:
        """Whether weights compete, so that there is a sparsity to set."""
        return get_sparsifier(self.sparsifier).competes

    def dense(self, params: tuple[Tensor, ...]) -> Tensor:
        """K, (out, in), from in_factors, out_factors and the kernel's scalars in its order."""
        return get_kernel(self.kernel).dense(*in_working_precision(params), scale=self.scale)

    def threshold(self, dense: Tensor, sparsity: float) -> Tensor:
        """The magnitude that an entry of K has to exceed, 0-dim; below 0 where none competes."""
        if not self.competes:
            return torch.full((), -1.0, dtype=dense.dtype, device=dense.device)
        return quantile_threshold(dense, sparsity)

    def __call__(
        self, params: tuple[Tensor, ...], sparsity: float, threshold: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the delta (out, in) and the threshold that was used.

        Args:
            params: in_factors, out_factors and the scalars of the kernel, in its order.
            sparsity: in [0, 1]; 1 stands for a starved matrix, whose delta is zero.
            threshold: reuse this one instead of looking for it (when recomputing).
        """
        dense = self.dense(params)
        if threshold is None:
            threshold = self.threshold(dense, sparsity)
        return apply_threshold(dense, threshold, self.sparsifier), threshold
