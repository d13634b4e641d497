"""Notices weight changes that have outgrown the weights that they change."""

from collections.abc import Mapping

import torch
from torch import nn

from ..inject import adapted_weights


class SizeGuard:
    """Says once when the delta of a matrix is larger than its frozen weight.

    Tuned runs end with ``||delta|| / ||W0||`` of about 0.05 to 0.2, runs that diverged with several
    times the weight, while loss and gradients may look harmless.

    Args:
        model: carries adapters; its frozen weights are measured now.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module) -> None:
        self.base = {
            matrix: float(module.base_weight[rows].norm())
            for _, module, matrices in adapted_weights(model)
            for matrix, rows in matrices.items()
        }
        self.told = False

    def check(self, norms: Mapping[str, float]) -> str | None:
        """A warning where a delta is larger than its weight, the first time only.

        Args:
            norms: matrix name -> Frobenius norm of its delta; NaN counts as larger. Weights that
                are zero are left out.
        """
        large = {n: norm for n, norm in norms.items() if self.base[n] and not norm <= self.base[n]}
        if self.told or not large:
            return None
        self.told = True
        worst = max(large, key=lambda name: large[name] / self.base[name])
        return (
            f"the weight change of {len(large)} of {len(norms)} matrices is larger than the frozen "
            f"weight itself, most of all that of {worst} (norms {large[worst]:.3g} and "
            f"{self.base[worst]:.3g}): the pretrained features are being lost. Lower backbone_lr "
            "of the optimizer's paramwise_cfg by a factor of 3, or lengthen the warm-up; a tuned "
            "run ends at about 0.2 times the weight"
        )
