"""What a model is made of: its linear maps, and the encoder blocks that hold them."""

from collections.abc import Iterator

from torch import nn

from ..layers import is_linear_map

_CONTAINERS = (nn.ModuleList, nn.Sequential)


def linear_weight(module: nn.Module) -> str | None:
    """Name of the weight by which a module maps features linearly, or None if it does not.

    That is ``nn.Linear``, the packed projection of ``nn.MultiheadAttention`` (not where keys and
    values have widths of their own), and 1x1 ``nn.Conv2d`` of one group.
    """
    name = None
    if isinstance(module, nn.MultiheadAttention):
        name = "in_proj_weight"
    elif isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and is_linear_map(module)):
        name = "weight"
    return name if name is not None and module._parameters.get(name) is not None else None


def find_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All blocks of an encoder, with their names, in the order of the modules.

    A block is an element of a ``ModuleList`` or ``Sequential`` that has linear maps within and no
    other block: what a ViT, a Swin stage or a ConvNeXt stage repeats. What lies between stages, as
    patch embedding and downsampling, is none.
    """
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        if not isinstance(module, _CONTAINERS):
            continue
        for key, element in module.named_children():
            if not isinstance(element, _CONTAINERS) and _has_maps_within(element):
                found.append((f"{name}.{key}" if name else key, element))
    holders = {name.rpartition(".")[0] for name, _ in found}
    for name, element in found:
        if not any(holder == name or holder.startswith(f"{name}.") for holder in holders):
            yield name, element


def _has_maps_within(module: nn.Module) -> bool:
    return any(linear_weight(child) for child in module.modules() if child is not module)
