"""A segmentor as one function of tensors, which torch.export follows for images of any size."""

import copy
import functools

import torch
from mmseg.models.backbones.swin import ShiftWindowMSA
from torch import Tensor, nn

from ..inject import list_adapters
from .merging import merge_adapters


class Deployable(nn.Module):
    """Images in, logits or labels of their pixels out: a merged segmentor without its Runner.

    Args:
        model: an EncoderDecoder, which is copied; the copy's adapters are merged.
        labels: give labels (N, H, W), int64, instead of logits (N, classes, H, W).
        normalise: do to the images what the data preprocessor does, but for padding: they are
            (N, bands, H, W), float32, as the test pipeline gives them. Otherwise they are
            expected to be normalised.
    """

    def __init__(self, model: nn.Module, labels: bool = False, normalise: bool = True) -> None:
        super().__init__()
        model = copy.deepcopy(model)
        if list_adapters(model):
            merge_adapters(model)
        model.eval()
        for module in model.modules():
            module.__class__ = _EXPORTABLE.get(type(module), type(module))
            if hasattr(module, "dynamic_feat_size"):  # of timm, which may not be installed
                module.dynamic_feat_size = functools.partial(_grid, module)
            if type(module).__name__ == "RotaryEmbeddingDinoV3":
                module._create_embed = functools.partial(_rotation, module)
            if type(module).__name__ in _WINDOWED:
                module.fused_attn = False
        self.model, self.labels = model.requires_grad_(False), labels
        processor = model.data_preprocessor
        swaps = processor._channel_conversion
        self.takes_raw = normalise
        self.bands = [2, 1, 0] if normalise and swaps else None
        self.normalises = normalise and processor._enable_normalize
        self.threshold = getattr(model.decode_head, "threshold", None)

    def forward(self, images: Tensor) -> Tensor:
        x, processor = images, self.model.data_preprocessor
        if self.bands and x.shape[1] == len(self.bands):
            x = x[:, self.bands]
        if self.normalises:
            x = (x - processor.mean) / processor.std
        logits = encode_decode(self.model, x)
        if not self.labels:
            return logits
        return to_labels(logits, self.threshold)


def encode_decode(model: nn.Module, inputs: Tensor) -> Tensor:
    """Logits (N, classes, H, W) of what a data preprocessor gives, (N, bands, H, W)."""
    size = inputs.shape[-2:]
    info = dict(ori_shape=size, img_shape=size, pad_shape=size, padding_size=[0] * 4)
    return model.encode_decode(inputs, [info])  # mmseg reads the first one's


def to_labels(logits: Tensor, threshold: float | None) -> Tensor:
    """The class of every pixel, (N, H, W), int64, of logits (N, classes, H, W).

    A single logit gives 1 where its sigmoid is above the threshold, and 0 elsewhere.
    """
    if logits.shape[1] > 1:
        return logits.argmax(1)
    return (logits.sigmoid() > threshold).squeeze(1).long()


def _grid(embedding: nn.Module, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches, without the fractions that timm rounds.

    Nothing negative is divided: ONNX rounds towards zero.
    """
    pads = embedding.dynamic_img_pad
    rows, columns = (
        (side + patch - 1 if pads else side) // patch
        for side, patch in zip(size, embedding.patch_size, strict=True)
    )
    return rows, columns


def _rotation(embedding: nn.Module, size: tuple[int, int], no_aug: bool = True) -> Tensor:
    """DINOv3's rotations in eval, (rows * columns, 2 * dim), for rows and columns that are symbols.

    timm divides by ``float(rows)``, which an exporter takes for the number that it traces.
    """
    places = [(torch.arange(side) + 0.5 + embedding.grid_offset) / side for side in size]
    grid = torch.stack(torch.meshgrid(places, indexing="ij"), -1).flatten(0, 1)
    return torch.cat(embedding._get_pos_embed_from_coords(2.0 * grid - 1.0), -1)


class _AnySizePool(nn.AdaptiveAvgPool2d):
    """Averages over bins as matrix products, whose shapes may be symbols."""

    def forward(self, x: Tensor) -> Tensor:
        size = self.output_size
        rows, columns = (size, size) if isinstance(size, int) else size
        return _averages(rows, x.shape[-2], x) @ x @ _averages(columns, x.shape[-1], x).mT


def _averages(bins: int, size: int, like: Tensor) -> Tensor:
    """The matrix (bins, size) that averages over overlapping bins, as torch's pooling has them."""
    i = torch.arange(bins, device=like.device)[:, None]
    place = torch.arange(size, device=like.device)
    start = torch.div(i * size, bins, rounding_mode="floor")
    end = torch.div((i + 1) * size + bins - 1, bins, rounding_mode="floor")
    inside = (place >= start) & (place < end)
    return inside.to(like.dtype) / (end - start).to(like.dtype)


class _AnyBatchWindows(ShiftWindowMSA):
    """Puts windows together without dividing by their number, which would fix the batch."""

    def window_reverse(self, windows: Tensor, H: int, W: int) -> Tensor:
        side = self.window_size
        x = windows.view(-1, H // side, W // side, side, side, windows.shape[-1])
        return x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)


_EXPORTABLE: dict[type, type] = {
    nn.AdaptiveAvgPool2d: _AnySizePool,
    ShiftWindowMSA: _AnyBatchWindows,
}
#: Classes of timm whose fused attention has an axis for windows, which ONNX's has not.
_WINDOWED = {"MaskUnitAttention", "LocallyGroupedAttn"}


#: Classes whose windows take minutes to follow for images of any size: padding to a multiple of the
#: window nests remainders, which are simplified anew in every block.
_SLOW = {
    "TinyVitBlock",
    "MultiScaleBlock",
    "LocallyGroupedAttn",
    "LocallyGroupedSelfAttention",
}


def fixes_size(model: nn.Module) -> bool:
    """Whether a model's windows are followed at one size of images alone.

    The masks of shifted windows are of a size that stock code reads off the image, step by step.
    """
    return any(
        isinstance(module, ShiftWindowMSA)
        or hasattr(module, "get_attn_mask")  # timm's shifted windows
        or type(module).__name__ in _SLOW
        for module in model.modules()
    )
