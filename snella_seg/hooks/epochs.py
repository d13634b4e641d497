"""How many iterations a pass over the training set takes."""

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
    batch_size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    try:
        length = len(loader.dataset)
    except TypeError:
        length = 0
    if not batch_size or not length:
        raise ValueError(
            "cannot tell how many iterations make an epoch of this dataset; set interval of "
            "SparsityAllocationHook"
        )
    return math.ceil(length / (batch_size * get_world_size()))
