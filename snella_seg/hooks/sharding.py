"""What sharded models can be trained with."""

from mmengine.hooks import CheckpointHook, EMAHook

from ..models import SnellaFullyShard
from .checkpoint import SnellaCheckpointHook
from .of_runner import optim_wrappers

_FOREIGN = ("FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine")


def check_sharding(runner) -> None:
    """Refuse wrappers that shard adapters, and what does not go with a sharded base.

    Raises:
        ValueError: naming it and what works.
    """
    for kind in type(runner.model).__mro__:
        if kind.__name__ in _FOREIGN:
            raise ValueError(
                f"{type(runner.model).__name__} shards all parameters, but adapters and their "
                "competition need whole ones: use "
                "model_wrapper_cfg=dict(type='SnellaFullyShard'), which shards the frozen base, or "
                "MMDistributedDataParallel"
            )
    if not isinstance(runner.model, SnellaFullyShard):
        return
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and not isinstance(hook, SnellaCheckpointHook):
            raise ValueError(
                f"{type(hook).__name__} saves from one process, which holds a share of what "
                "SnellaFullyShard shards: set default_hooks.checkpoint.type to "
                "SnellaCheckpointHook"
            )
        if isinstance(hook, EMAHook):
            raise ValueError(
                "EMAHook keeps the whole model a second time, which SnellaFullyShard is to save: "
                "leave it out, or use MMDistributedDataParallel"
            )
    if runner.cfg.get("compile"):
        raise ValueError(
            "compile does not go with SnellaFullyShard: leave it out, or use "
            "MMDistributedDataParallel"
        )
    held = [
        parameter
        for wrapper in optim_wrappers(runner)
        for group in wrapper.optimizer.param_groups
        for parameter in group["params"]
    ]
    if not all(parameter.requires_grad for parameter in held):
        raise ValueError(
            "the optimizer holds frozen parameters, which would keep them whole in every process "
            "under SnellaFullyShard: set optim_wrapper.constructor to SnellaOptimWrapperConstructor"
        )
