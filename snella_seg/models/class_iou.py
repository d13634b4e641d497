"""mmseg's IoU metric with a figure per class."""

from collections.abc import Sequence

import torch
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS


@METRICS.register_module()
class ClassIoUMetric(IoUMetric):
    """mmseg's ``IoUMetric`` that also reports ``IoU/<class>``, in percent, for every class.

    A class that is neither in the labels nor in the predictions has none. Arguments as of
    ``IoUMetric``.
    """

    def compute_metrics(self, results: list[Sequence[torch.Tensor]]) -> dict[str, float]:
        metrics = super().compute_metrics(results)
        if self.format_only:
            return metrics
        intersect, union = (sum(part[i] for part in results) for i in (0, 1))
        for name, inside, covered in zip(
            self.dataset_meta["classes"], intersect.tolist(), union.tolist(), strict=True
        ):
            if covered:
                metrics[f"IoU/{name}"] = round(100 * inside / covered, 2)
        return metrics
