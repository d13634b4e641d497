"""Linear heads of a hybrid kernel start as LoRA's, with Q small instead of zero."""

import torch
from torch import nn

from ...inject import METHODS, Method
from ...layers import SnellaAdapter
from ...layers.adapter import SMALL


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
        bound = self.in_features**-0.5
        with torch.no_grad():
            nn.init.uniform_(self.in_factors[:linear], -bound, bound)
            nn.init.uniform_(self.out_factors[:linear], -SMALL, SMALL)


METHODS["form"] = Method(
    "form",
    "SNELLA with other kernels, sparsifiers and starts, for studies",
    defaults=dict(sparsifier="normalised"),
    foreign=("scale",),
    adapter_class=SmallStartAdapter,
)
