"""Two tasks or more at once: where their deltas overlap, and what comes of adding them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..inject import find_matrices
from ..loading import CheckpointError
from ..loading.header import compare_base
from ..models import SnellaBackbone
from .adapter_file import AdapterFile


@torch.no_grad()
def adapter_overlap(first: AdapterFile, second: AdapterFile) -> dict[str, tuple[int, int]]:
    """How far two tasks change the same weights.

    Args:
        first: an adapter file, see :func:`snella_seg.artifacts.read_adapter`.
        second: another one of the same backbone.

    Returns:
        Matrix name -> the number of weights that both change, and that either changes. Their ratio
        is the Jaccard index; that of two tasks that choose at random, with densities p and q, is
        p q / (p + q - p q). A matrix that only one of them adapts has none in common.

    Raises:
        CheckpointError: when a matrix has another shape in the other file.
    """
    ours, theirs = first.adapters(), second.adapters()
    counts = {}
    for name in [*ours, *(n for n in theirs if n not in ours)]:
        masks = [a[name].delta_weight() != 0 for a in (ours, theirs) if name in a]
        if len(masks) == 2 and masks[0].shape != masks[1].shape:
            raise CheckpointError(
                f"{name} has shape {tuple(masks[0].shape)} in {first.path} and "
                f"{tuple(masks[1].shape)} in {second.path}: adapters of different backbones"
            )
        both = int((masks[0] & masks[1]).sum()) if len(masks) == 2 else 0
        counts[name] = (both, sum(int(mask.sum()) for mask in masks) - both)
    return counts


@torch.no_grad()
def combine_adapters(
    wrapper: SnellaBackbone, files: Sequence[AdapterFile], weights: Sequence[float]
) -> dict[str, Tensor]:
    """The base with a weighted sum of several tasks' deltas (as in task arithmetic, 2212.04089).

    Weights of 1 add the deltas, weights of 1 / n average them. What else the tasks trained in the
    backbone counts by its difference to the base in the same way.

    Args:
        wrapper: holds the base and no adapters (``targets=[]``).
        files: the tasks.
        weights: one each.

    Returns:
        State of the stock backbone.

    Raises:
        CheckpointError: when a file belongs to another base.
        ValueError: on other than one weight per file.
    """
    if len(weights) != len(files):
        raise ValueError(f"{len(files)} files need as many weights, got {len(weights)}")
    base = wrapper.backbone.state_dict()
    state = {name: value.detach().clone() for name, value in base.items()}
    matrices = {matrix.name: matrix for matrix in find_matrices(wrapper.backbone)}
    for file, weight in zip(files, weights, strict=True):
        extras = file.extras()
        problem = compare_base(wrapper, file.info["header"], trained=extras)
        if problem:
            raise CheckpointError(f"{file.path}: {problem}")
        for name, adapter in file.adapters().items():
            matrix = matrices[name]
            rows = state[matrix.weight].flatten(1)[matrix.start : matrix.stop]
            rows += weight * adapter.delta_weight().to(rows)
        for name, value in extras.items():
            if value.is_floating_point():
                state[name] += weight * (value.to(base[name]) - base[name])
    return state
