"""Starts for linear heads: P as LoRA's, Q small instead of zero, since at K = 0 nothing learns."""

import torch
from torch import nn

from ...inject import METHODS, Method
from ...layers import SnellaAdapter

#: Half-width of Q's uniform draw.
SMALL = 3e-3


class SmallStartAdapter(SnellaAdapter):
    """:class:`snella_seg.layers.SnellaAdapter` whose linear heads start near zero.

    With ``kernel='linear'`` these are all heads, in a hybrid kernel the first half.
    """

    def reset_parameters(self) -> None:
        super().reset_parameters()
        heads = len(self.in_factors)
        linear = heads if self.rule.kernel == "linear" else heads // 2
        if not (self.rule.kernel == "linear" or self.rule.kernel.startswith("hybrid")):
            return
        with torch.no_grad():
            nn.init.uniform_(
                self.in_factors[:linear], -(self.in_features**-0.5), self.in_features**-0.5
            )
            nn.init.uniform_(self.out_factors[:linear], -SMALL, SMALL)


METHODS["form"] = Method(
    "form",
    "SNELLA with other kernels, sparsifiers and starts, for studies",
    defaults=dict(sparsifier="normalised"),
    foreign=("scale",),
    adapter_class=SmallStartAdapter,
)
