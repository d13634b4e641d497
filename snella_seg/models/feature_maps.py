"""Whether necks and heads take the maps that the backbone gives, seen at the first image."""

from collections.abc import Sequence

from torch import Tensor, nn


def check_feature_maps(model: nn.Module) -> None:
    """Let the first maps of a segmentor's backbone and neck be compared with what is made of them.

    Without this they end in the shapes of some convolution. Costs nothing after the first batch.

    Raises:
        ValueError: in the first forward pass, naming the head, its option, and what it gets.
    """
    neck = getattr(model, "neck", None)
    heads = [(name, getattr(model, name, None)) for name in ("decode_head", "auxiliary_head")]
    takers = [(n, one) for n, h in heads for one in (h if isinstance(h, nn.ModuleList) else [h])]
    chain = [(getattr(model, "backbone", None), [("neck", neck)] if neck is not None else takers)]
    if neck is not None:
        chain.append((neck, takers))
    for source, consumers in chain:
        if isinstance(source, nn.Module):
            _watch(source, consumers)


def _watch(source: nn.Module, consumers: Sequence[tuple[str, nn.Module | None]]) -> None:
    def look(module, inputs, maps) -> None:
        handle.remove()
        if isinstance(maps, (list, tuple)) and all(isinstance(m, Tensor) for m in maps):
            for name, consumer in consumers:
                _compare(name, consumer, [m.shape[1] for m in maps])

    handle = source.register_forward_hook(look)


def _compare(name: str, consumer: nn.Module | None, channels: list[int]) -> None:
    wanted = getattr(consumer, "in_channels", None)
    index = getattr(consumer, "in_index", None)
    if index is None:
        index = list(range(len(wanted))) if isinstance(wanted, (list, tuple)) else None
    if wanted is None or index is None or type(wanted) is not type(index):
        return  # heads that put several maps together
    wanted, index = ([x] if isinstance(x, int) else list(x) for x in (wanted, index))
    given = f"the maps that it gets have {channels} channels (out_indices of the backbone, neck)"
    outside = [i for i in index if not -len(channels) <= i < len(channels)]
    if outside:
        raise ValueError(
            f"model.{name} takes map {outside[0]} of {len(channels)}: {given}; set its in_index "
            "and in_channels, or the backbone's out_indices"
        )
    found = [channels[i] for i in index]
    if found != wanted:
        raise ValueError(f"model.{name}.in_channels is {wanted}, {given}: set it to {found}")
