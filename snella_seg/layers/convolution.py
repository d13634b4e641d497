"""Convolutions of one pixel, linear layers over channels, whose weights carry adapters."""

from typing import Any

from torch import Tensor, nn

from .module import AdaptedModule


def is_linear_map(convolution: nn.Conv2d) -> bool:
    """Whether a convolution multiplies each pixel's channels by one matrix, and nothing else."""
    return (
        convolution.kernel_size == (1, 1)
        and convolution.groups == 1
        and convolution.padding in ((0, 0), "valid", "same")
    )


class AdaptedConv2d(AdaptedModule):
    """Mixin for 1x1 ``nn.Conv2d`` of one group, without padding: a linear layer of each pixel.

    The parameter stays (out, in, 1, 1); adapters see it as the matrix (out, in).
    """

    adapted_weight_name = "weight"
    bias: nn.Parameter | None
    stride: tuple[int, int]

    @property
    def weight(self) -> Tensor:
        """The effective weight, (out, in, 1, 1)."""
        if not self.adapters_enabled or not self.adapters or self.is_sharded:
            return self.base_parameter
        return self.effective_weight()[..., None, None]

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (N, in, H, W) or (in, H, W) -> (N, out, H / stride, W / stride), or without N."""
        if not self.calls_plain_convolution:
            return super().forward(x)  # type: ignore[misc]
        used = x[..., :: self.stride[0], :: self.stride[1]]
        y = self.product(used.movedim(-3, -1), self.bias).movedim(-1, -3)
        return y.contiguous() if x.is_contiguous() else y

    @property
    def calls_plain_convolution(self) -> bool:
        """Whether the stock forward is the convolution and nothing else (mmcv's is, too)."""
        stock: Any = type(self).stock_class
        return stock.forward is nn.Conv2d.forward or stock.__module__ == "mmcv.cnn.bricks.wrappers"
