"""Looks at labels before the loss does, whose errors name neither image nor value."""

import contextlib
import math

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..models.label_values import class_mismatches, label_hint, label_ranges
from .epochs import iterations_per_epoch
from .of_runner import plain_model

#: Iterations after which a run whose labels are all to be ignored is ended.
LOOK = 20


class BadLabels(ValueError):
    """Label maps hold what the heads do not know."""


@HOOKS.register_module()
class LabelCheckHook(Hook):
    """Refuses label maps with values that the heads do not know, and those of several channels.

    In the loss such labels end in an index error, on a GPU in a failed assertion that names
    neither value nor file. Labels of the first pass over the training set are looked at, which
    costs about a millisecond an image; later ones are the same. Classes that none of them had are
    warned of after that pass: crops may have missed them, or the values mean something else.
    :class:`SparsityAllocationHook` brings this hook along where a config does not name it.

    Raises:
        BadLabels: in training, naming file, values, and what to set.
    """

    priority = "VERY_HIGH"

    def before_train(self, runner) -> None:
        self.ranges = label_ranges(plain_model(runner))
        metainfo = getattr(runner.train_dataloader.dataset, "metainfo", None) or {}
        self.names = metainfo.get("classes")
        for trouble in class_mismatches(plain_model(runner), self.names):
            raise BadLabels(trouble)
        self.until, self.seen, self.known = math.inf, False, False
        self.present: set[int] = set()
        self.look_until = runner.iter + LOOK
        with contextlib.suppress(ValueError, TypeError):  # a dataset without length
            self.until = runner.iter + iterations_per_epoch(runner)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if runner.iter == self.look_until and self.ranges and self.seen and not self.known:
            raise BadLabels(
                f"all labels of the first {LOOK} iterations are to be ignored, nothing is learnt: "
                "look at reduce_zero_label, and at the values of the label maps"
            )
        if runner.iter == self.until and self.ranges and self.seen:
            self._warn_of_missing_classes(runner)
        if runner.iter >= self.until or not isinstance(data_batch, dict):
            return
        for sample in data_batch.get("data_samples", ()):
            if hasattr(sample, "gt_sem_seg"):
                self._check(sample)

    def _check(self, sample) -> None:
        labels = sample.gt_sem_seg.data
        name = getattr(sample, "seg_map_path", None) or getattr(sample, "img_path", "of no name")
        if labels.ndim != 3 or labels.shape[0] != 1:
            raise BadLabels(
                f"label map {name} is a picture of several channels (shape {tuple(labels.shape)}): "
                "convert colours to one channel of class numbers"
            )
        self.seen = True
        for known in self.ranges:
            self.known = self.known or bool((labels != known.ignore_index).any())
            wrong = (labels < 0) | (labels >= known.count)
            if not bool((wrong & (labels != known.ignore_index)).any()):
                counts = torch.bincount(labels[labels != known.ignore_index])
                self.present.update(counts.nonzero().flatten().tolist())
                continue
            values = torch.unique(labels).tolist()
            outside = ", ".join(map(str, known.outside(values)[:6]))
            raise BadLabels(
                f"label map {name} holds the labels {outside}, {known}; {label_hint(values, known)}"
            )

    def _warn_of_missing_classes(self, runner) -> None:
        """Name the classes that the labels of all processes have not had so far."""
        present = set().union(*all_gather_object(self.present))
        names = self.names or range(max(known.count for known in self.ranges))
        missing = [str(name) for label, name in enumerate(names) if label not in present]
        if missing:
            runner.logger.warning(
                f"no label of the first pass over the training set is of class "
                f"{', '.join(missing[:6])}{' ...' if len(missing) > 6 else ''} ({len(missing)} of "
                f"{len(names)}): where that is not meant, look at reduce_zero_label and at the "
                "values of the label maps (preflight counts them)"
            )
