"""How many images an iteration takes, how many iterations a pass over the training set takes."""

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


def iterations_between(runner, interval: int | None, before: dict) -> tuple[int, int | None]:
    """Iterations from a reallocation to the next, and the images that they are to stand for.

    Args:
        interval: iterations as the config gives them; None for a pass over the training set.
        before: of a resumed run, its ``interval`` (``'given'``) and those images (``'images'``),
            which are kept where an iteration takes others now, unless another interval is given.

    Returns:
        The iterations, at least 1; the images, None where the loader does not say.

    Raises:
        ValueError: as :func:`iterations_per_epoch`.
    """
    each = images_per_iteration(runner)
    iterations = interval or iterations_per_epoch(runner)
    if not each:
        return iterations, None
    images = before.get("images")
    if interval is None or interval != before.get("given") or not images:
        return iterations, each * iterations
    return max(1, round(images / each)), images
