"""What shows that an exported file computes what the model does: images, and proofs on them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from ..loading import CheckpointError
from ..models import load_image
from ..models.bands import input_bands
from .exportable import Deployable, encode_decode, to_labels

#: How much logits may differ, as a share of the largest, and how many labels must be the same.
TOLERANCE, SAME_LABELS = 1e-4, 0.999


@dataclass(frozen=True)
class Proof:
    """What a file gave for a batch, against the model that it was made of.

    Attributes:
        shape: of the images, (N, bands, H, W).
        difference: the largest of logits; None where the file gives labels.
        largest: logit of the model.
        same: share of pixels with the same label.
    """

    shape: tuple[int, ...]
    difference: float | None
    largest: float
    same: float

    @property
    def holds(self) -> bool:
        close = self.difference is None or self.difference <= TOLERANCE * max(self.largest, 1.0)
        return close and self.same >= SAME_LABELS  # NaN does not hold


def proof_image(model: nn.Module, image: str | None, size: tuple[int, int]) -> Tensor:
    """An image as the test pipeline gives it, or noise, (1, bands, H, W) in float32."""
    if image is not None:
        return load_image(model.cfg, image)["inputs"][0][None].float()
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, input_bands(model.backbone), *size, generator=generator) * 255


def proof_batches(given: Tensor, freedom: str, step: int, window: tuple[int, int]) -> list[Tensor]:
    """Images to prove a file on: of all sizes and numbers that it is said to take."""

    def resized(height: int, width: int) -> Tensor:
        size = [max(side // step, 1) * step for side in (height, width)]
        return F.interpolate(given, size, mode="bilinear", align_corners=False)

    usual = resized(*window)
    if freedom == "nothing":
        return [usual]
    several = torch.cat([usual, usual.flip(-1), usual * 0.5])
    if freedom == "batch":
        return [usual, several]
    return [resized(*given.shape[-2:]), several, resized(window[0] + step, window[1])]


@torch.no_grad()
def proof_sample(model: nn.Module, images: Tensor, normalise: bool) -> tuple[Tensor, Tensor]:
    """What a file is given of images (N, bands, H, W), and the model's logits of them."""
    data = dict(inputs=list(images), data_samples=[SegDataSample() for _ in images])
    inputs = model.data_preprocessor(data, False)["inputs"]
    return (images if normalise else inputs), encode_decode(model, inputs)


def prove(
    run: Callable[[Tensor], Tensor], deployable: Deployable, images: Tensor, logits: Tensor
) -> Proof:
    """Compare what a file gives for images with the model's logits (N, classes, H, W) of them."""
    found, expected = run(images), to_labels(logits, deployable.threshold)
    if deployable.labels:
        difference, labels = None, found
    else:
        difference = float((found - logits).abs().max())
        labels = to_labels(found, deployable.threshold)
    same = float((labels == expected).float().mean())
    return Proof(tuple(images.shape), difference, float(logits.abs().max()), same)


def refuse_unequal(path: Path, proofs: tuple[Proof, ...]) -> None:
    """Raise CheckpointError for the first proof that does not hold."""
    for proof in proofs:
        if not proof.holds:
            raise CheckpointError(
                f"{path} does not compute what the model computes, and was not kept: on images of "
                f"{proof.shape} logits differ by {proof.difference} (largest {proof.largest:.2f}), "
                f"{proof.same:.2%} of the labels are the same"
            )
