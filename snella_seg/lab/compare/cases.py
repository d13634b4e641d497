"""Images on which methods differ: what each of them made of the same ones."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from numpy.typing import NDArray

from ...models.inference import build_segmentor

#: No more validation images than this are looked at, spread evenly over all.
LOOKED_AT = 100


@dataclass
class Case:
    """One validation image.

    Attributes:
        name: of its file.
        picture: (H, W, 3), uint8, RGB.
        labels: (H', W') class indices, -1 where they are ignored.
        made: method -> its prediction, of the labels' shape.
        scores: method -> mean IoU in percent over the classes that the labels hold.
    """

    name: str
    picture: NDArray
    labels: NDArray
    made: dict[str, NDArray] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)

    def gain(self, reference: str) -> float:
        """How much better than the reference the other methods are, in their mean."""
        others = [score for method, score in self.scores.items() if method != reference]
        return float(np.mean(others)) - self.scores[reference]


@torch.no_grad()
def look_at(segmentors: Mapping[str, tuple[Config, str]]) -> tuple[list[Case], dict]:
    """Let all methods segment the same validation images.

    Args:
        segmentors: method -> its config and its checkpoint.

    Returns:
        The images that hold labels, and the dataset's meta information.
    """
    cases: dict[str, Case] = {}
    meta: dict = {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for method, (cfg, checkpoint) in segmentors.items():
        model = build_segmentor(cfg, checkpoint).to(device)
        settings = copy.deepcopy(cfg.val_dataloader)
        settings.update(batch_size=1, num_workers=0, persistent_workers=False)
        loader = Runner.build_dataloader(settings)
        meta, ignored = loader.dataset.metainfo, getattr(loader.dataset, "ignore_index", 255)
        count = len(loader.dataset)
        for index in np.linspace(0, count - 1, min(LOOKED_AT, count)).astype(int):
            item = loader.dataset[int(index)]
            (sample,) = model.val_step(loader.collate_fn([item]))
            labels = sample.gt_sem_seg.data.squeeze(0).cpu().numpy().astype(np.int64)
            labels[labels == ignored] = -1
            name = str(sample.img_path)
            case = cases.setdefault(name, Case(name, _picture(item["inputs"]), labels))
            made = sample.pred_sem_seg.data.squeeze(0).cpu().numpy()
            case.made[method] = made
            case.scores[method] = mean_iou(made, labels)
    seen = [case for case in cases.values() if not np.isnan(list(case.scores.values())).any()]
    return seen, meta


def mean_iou(made: NDArray, labels: NDArray) -> float:
    """Mean IoU in percent over the classes that a label map holds; NaN where it holds none."""
    made, labels = made[labels >= 0], labels[labels >= 0]
    pairs = [(made == index, labels == index) for index in np.unique(labels)]
    ious = [100.0 * (first & second).sum() / (first | second).sum() for first, second in pairs]
    return float(np.mean(ious)) if ious else float("nan")


def choose(cases: Sequence[Case], reference: str, count: int) -> list[Case]:
    """From the image that gains most over the reference to the one that loses most, evenly."""
    ordered = sorted(cases, key=lambda case: case.gain(reference), reverse=True)
    places = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[place] for place in places]


def _picture(inputs: torch.Tensor) -> NDArray:
    """An image of any bands (C, H, W) as RGB; three bands are BGR, of others the first is grey."""
    bands = inputs.float().numpy()
    if inputs.dtype != torch.uint8:
        low, high = bands.min(), bands.max()
        bands = (bands - low) * (255.0 / max(high - low, 1e-12))
    bands = bands[::-1] if len(bands) == 3 else np.repeat(bands[:1], 3, 0)
    return bands.transpose(1, 2, 0).round().astype(np.uint8)
