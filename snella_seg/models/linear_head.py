"""The head of linear evaluation: what a backbone's features hold, and nothing else."""

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import build_norm_layer
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class LinearHead(BaseDecodeHead):
    """Batch norm and a 1x1 convolution, the linear evaluation of DINOv2 (arXiv 2304.07193).

    A head that learns little of its own shows what adapting the backbone gains; a UperNet hides it.

    Args:
        in_channels: of the map, or of each of several maps.
        num_classes: number of classes.
        in_index: which of the backbone's maps; several are resized to the first and joined.
        norm_cfg: of the batch norm.
        dropout_ratio: of channels before the convolution.
        options: as of mmseg's ``BaseDecodeHead`` (``loss_decode``, ``ignore_index``, ...).
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        *,
        num_classes: int,
        in_index: int | Sequence[int] = -1,
        norm_cfg: dict | None = None,
        dropout_ratio: float = 0.0,
        **options: Any,
    ) -> None:
        several = not isinstance(in_channels, int)
        channels = sum(in_channels) if several else in_channels
        norm_cfg = norm_cfg or dict(type="BN", requires_grad=True)
        super().__init__(
            in_channels,
            options.pop("channels", channels),
            num_classes=num_classes,
            in_index=in_index,
            norm_cfg=norm_cfg,
            dropout_ratio=dropout_ratio,
            input_transform="resize_concat" if several else None,
            **options,
        )
        if self.channels != channels:
            raise ValueError(
                f"LinearHead has as many channels as its maps together, {channels}, got channels="
                f"{self.channels}; leave it out"
            )
        self.norm = build_norm_layer(norm_cfg, channels)[1]

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps (N, C_i, H_i, W_i) -> logits (N, classes, H, W) at the size of the first."""
        return self.cls_seg(self.norm(self._transform_inputs(inputs)))
