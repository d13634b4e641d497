"""How much a segmentor's probabilities can be believed."""

from collections.abc import Sequence

import torch
from mmengine.evaluator import BaseMetric
from mmseg.registry import METRICS

#: Number of equal intervals of confidence.
BINS = 15


@METRICS.register_module()
class CalibrationMetric(BaseMetric):
    """``NLL`` and ``ECE`` of the predicted probabilities, over all labelled pixels.

    NLL is the mean negative log-likelihood of the labels, in nats. ECE is the expected calibration
    error in percent (Guo et al., arXiv 1706.04599): pixels are sorted into 15 intervals of the
    probability of the predicted class, and the gaps between that and the accuracy are averaged by
    the intervals' sizes.

    Args:
        ignore_index: label of pixels that do not count.
        options: as of mmengine's ``BaseMetric``.
    """

    def __init__(self, ignore_index: int = 255, **options) -> None:
        super().__init__(**options)
        self.ignore_index = ignore_index

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Take in samples with ``seg_logits`` (classes, H, W) and ``gt_sem_seg`` (1, H, W).

        Raises:
            ValueError: on logits of a single channel, which are no distribution over classes.
        """
        for sample in data_samples:
            logits = sample["seg_logits"]["data"].float().flatten(1)  # (classes, pixels)
            labels = sample["gt_sem_seg"]["data"].flatten().to(logits.device).long()
            if len(logits) < 2:
                raise ValueError("CalibrationMetric needs a logit for each class, got one in all")
            known = labels != self.ignore_index
            logs = logits[:, known].log_softmax(0)
            labels = labels[known]
            nll = -logs.gather(0, labels[None]).double().sum()
            confidence, predicted = logs.max(0)
            confidence = confidence.exp().double()
            bins = (confidence * BINS).long().clamp_max(BINS - 1)
            sums = torch.zeros(3, BINS, dtype=torch.float64, device=logits.device)
            parts = (torch.ones_like(confidence), confidence, (predicted == labels).double())
            for row, values in zip(sums, parts, strict=True):
                row.index_add_(0, bins, values)
            self.results.append((float(nll), sums.cpu()))

    def compute_metrics(self, results: list[tuple[float, torch.Tensor]]) -> dict[str, float]:
        """The two figures; NaN where no pixel had a label."""
        nll = sum(part[0] for part in results)
        count, confidence, correct = sum(part[1] for part in results)
        total = float(count.sum())
        if not total:
            return {"NLL": float("nan"), "ECE": float("nan")}
        gaps = (confidence - correct).abs().sum()
        return {"NLL": round(nll / total, 4), "ECE": round(100 * float(gaps) / total, 2)}
