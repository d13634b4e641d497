"""What a config that came in a file may have built."""

from mmengine.registry import WEIGHT_INITIALIZERS
from mmseg.registry import MODELS, TASK_UTILS, TRANSFORMS

from ..loading import CheckpointError


def refuse_unknown_types(config, where: str) -> None:
    """Refuse a config that would have anything built but what is registered by a plain name.

    mmengine imports and calls whatever a dotted name says, so a config from a file that somebody
    sent could run any code.

    Raises:
        CheckpointError: naming the type.
    """
    if isinstance(config, dict):
        kind = config.get("type")
        if kind is not None and not _is_registered(kind):
            raise CheckpointError(
                f"the config in {where} asks for {kind!r}, which is no registered class; import "
                "what registers it, or use load_adapter with a config of your own"
            )
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for item in config:
            refuse_unknown_types(item, where)


def _is_registered(kind) -> bool:
    registries = []
    for registry in (MODELS, TRANSFORMS, TASK_UTILS, WEIGHT_INITIALIZERS):
        while registry is not None:
            registry.import_from_location()
            registries.append(registry)
            registry = registry.parent
    return any(kind in registry.module_dict for registry in registries)
