"""Which label values the heads of a segmentor know."""

from typing import NamedTuple

from torch import nn


class LabelRange(NamedTuple):
    """Labels from 0 to ``count - 1``, and ``ignore_index``, which has no part in the loss."""

    head: str
    count: int
    ignore_index: int

    def __str__(self) -> str:
        return f"{self.head} knows 0 to {self.count - 1} and ignores {self.ignore_index}"

    def outside(self, values) -> list[int]:
        """Those of some label values that are neither known nor ignored."""
        return sorted(int(v) for v in values if not 0 <= v < self.count and v != self.ignore_index)


def label_ranges(model: nn.Module) -> list[LabelRange]:
    """What each decode and auxiliary head of a segmentor knows; a single logit tells two classes.

    Heads that do not say their classes, or whose loss is not one of labels, are left out.
    """
    found = []
    for name in ("decode_head", "auxiliary_head"):
        head = getattr(model, name, None)
        for one in head if isinstance(head, nn.ModuleList) else [head] if head else []:
            count, ignored = getattr(one, "num_classes", None), getattr(one, "ignore_index", None)
            if count is None or ignored is None:
                continue
            if getattr(one, "out_channels", count) == 1:
                count = max(count, 2)
            found.append(LabelRange(name, count, ignored))
    return list(dict.fromkeys(found))


def class_mismatches(model: nn.Module, classes) -> list[str]:
    """Heads whose number of classes is not that of the training set, a line each.

    Args:
        model: a segmentor.
        classes: names of the dataset; nothing is said where there are none.
    """
    return [
        f"{known.head} has {known.count} classes, the training set names {len(classes)}: set "
        f"model.{known.head}.num_classes"
        for known in label_ranges(model)
        if classes and known.count != len(classes)
    ]


def label_hint(values, known: LabelRange) -> str:
    """What mends label values that a head does not know.

    Args:
        values: all label values that were seen.
        known: of the head.
    """
    labels = sorted(int(v) for v in values if v != known.ignore_index)
    if labels and labels[0] == 1 and labels[-1] == known.count:
        return "labels begin at 1: set reduce_zero_label=True in the dataset and LoadAnnotations"
    if labels and labels[0] >= 0 and labels[-1] < 255 and labels[-1] - known.count < 8:
        return (
            f"set num_classes of the heads to {labels[-1] + 1}, if these are classes, or map the "
            "labels to known or ignored ones"
        )
    return "label maps must hold class numbers, not grey values: convert them"
