"""From factors to the sparse weight change of one matrix."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .kernels import KERNELS
from .precision import in_working_precision
from .sparsify import apply_threshold
from .threshold import quantile_threshold


@dataclass(frozen=True)
class DeltaRule:
    """How a delta is made: ``delta = sparsify(kernel(P, Q, *scalars), sparsity, sparsifier)``.

    Parameters in half precision are worked on in single precision.

    Args:
        kernel: a name in :data:`snella_seg.functional.kernels.KERNELS`.
        sparsifier: ``'weighted'``, ``'soft'``, ``'hard'`` or ``'none'``.
        scale: weight of each head of the distance kernel, or of the linear kernel's product.
    """

    kernel: str = "mixed"
    sparsifier: str = "weighted"
    scale: float = 0.1

    def threshold(self, dense: Tensor, sparsity: float) -> Tensor:
        """The magnitude that an entry of K has to exceed, 0-dim; below 0 where none competes."""
        if self.sparsifier == "none":
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
        kernel, _ = KERNELS[self.kernel]
        dense = kernel(*in_working_precision(params), scale=self.scale)
        if threshold is None:
            threshold = self.threshold(dense, sparsity)
        return apply_threshold(dense, threshold, self.sparsifier), threshold
