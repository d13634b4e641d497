"""Linear layers whose weights carry adapters."""

from typing import Any

from torch import Tensor, nn

from .module import AdaptedModule


class AdaptedLinear(AdaptedModule):
    """Mixin for ``nn.Linear`` and its subclasses: ``y = x (W + deltas)^T + b``.

    A packed projection (qkv) carries one adapter for each matrix stacked in it.
    """

    adapted_weight_name = "weight"
    bias: nn.Parameter | None

    @property
    def weight(self) -> Tensor:
        """The effective weight, (out, in)."""
        return self.effective_weight()

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (..., in) -> (..., out)."""
        if self.calls_plain_linear:
            return self.product(x, self.bias)
        return super().forward(x)  # type: ignore[misc]

    @property
    def calls_plain_linear(self) -> bool:
        """Whether the stock forward is ``F.linear`` and nothing else (mmcv's is, too)."""
        stock: Any = type(self).stock_class
        return stock.forward is nn.Linear.forward or stock.__module__ == "mmcv.cnn.bricks.wrappers"
