"""What hooks ask a runner for, whatever its model and its optimizers are wrapped in."""

import math

from mmengine.model import is_model_wrapper
from torch import nn


def plain_model(runner) -> nn.Module:
    """The model, out of the wrapper that several processes need."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def optim_wrappers(runner) -> list:
    """All optimizer wrappers; there is one, unless the config has an OptimWrapperDict."""
    wrapper = runner.optim_wrapper
    return list(getattr(wrapper, "optim_wrappers", {"": wrapper}).values())


def steps_within(runner, iterations: int) -> int:
    """How many steps the optimizers take in a number of iterations."""
    return math.ceil(iterations / micro_batches(runner))


def micro_batches(runner) -> int:
    """How many iterations a step of the optimizers takes."""
    return max(getattr(w, "_accumulative_counts", 1) for w in optim_wrappers(runner))


def has_updated(runner) -> bool:
    """Whether the last iteration ended with an update, so that no gradients wait for more."""
    return all(wrapper.should_update() for wrapper in optim_wrappers(runner))


def will_update(runner) -> bool:
    """Whether the iteration that begins will end with an update."""
    return all(wrapper.should_sync() for wrapper in optim_wrappers(runner))
