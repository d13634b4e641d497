"""How many images an iteration takes, and how many iterations a pass over the training set."""

import math

from mmengine.dist import get_world_size
from mmengine.runner import EpochBasedTrainLoop


def iterations_per_epoch(runner) -> int:
    """Iterations of one pass over the training set, whatever the kind of loop.

    Raises:
        ValueError: when the dataset or batch size is not known; then give ``interval``.
    """
    loader = runner.train_dataloader
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        return len(loader)
    images = images_per_iteration(runner)
    try:
        length = len(loader.dataset)
    except TypeError:
        length = 0
    if not images or not length:
        raise ValueError(
            "cannot tell how many iterations make an epoch of this dataset; set interval of "
            "SparsityAllocationHook"
        )
    return math.ceil(length / images)


def images_per_iteration(runner) -> int | None:
    """Images of an iteration, in all processes together; None where the loader does not say."""
    loader = runner.train_dataloader
    size = getattr(loader, "batch_size", None)
    size = size or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    return size and size * get_world_size()
