"""What hooks ask a runner for, whatever its model and its optimizers are wrapped in."""

from mmengine.model import is_model_wrapper
from torch import nn


def plain_model(runner) -> nn.Module:
    """The model, out of the wrapper that several processes need."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def optim_wrappers(runner) -> list:
    """All optimizer wrappers; there is one, unless the config has an OptimWrapperDict."""
    wrapper = runner.optim_wrapper
    return list(getattr(wrapper, "optim_wrappers", {"": wrapper}).values())


def has_updated(runner) -> bool:
    """Whether the last iteration ended with an update, so that no gradients wait for more."""
    return all(wrapper.should_update() for wrapper in optim_wrappers(runner))


def refuse_sharded(model) -> None:
    """Refuse wrappers that cut parameters into pieces, in which adapters are not found.

    Raises:
        ValueError: naming the wrapper and what works.
    """
    for kind in type(model).__mro__:
        if kind.__name__ in ("FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine"):
            raise ValueError(
                f"{type(model).__name__} shards parameters, which adapters and their competition "
                "do not know: use MMDistributedDataParallel. The base is frozen, so it needs "
                "neither gradients nor optimizer states, which are what sharding saves"
            )
