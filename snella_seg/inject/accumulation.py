"""Gradient accumulation over micro-batches, as far as adapters can save work by knowing of it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..engine import Accumulator, merge_deltas
from .attach import list_adapters


def accumulate_gradients(model: nn.Module, more: bool) -> None:
    """Say, before the forward of each micro-batch, whether another of the same step follows.

    Sparse deltas are then made once a step, and their gradients summed up weight by weight; those
    of the factors appear with the backward of the last micro-batch
    (:mod:`snella_seg.engine.accumulation`). A model that is never told makes everything anew for
    each. :class:`snella_seg.hooks.SparsityAllocationHook` tells it of ``accumulative_counts``.

    Args:
        model: any model with adapters.
        more: whether the micro-batch at hand is not the last one. Before the factors or the
            sparsities change, one has to be the last.
    """
    for adapter in list_adapters(model).values():
        if more and adapter.accumulator is None:
            adapter.accumulator = Accumulator()
        if adapter.accumulator is not None:
            adapter.accumulator.tell(more)


def settle_gradients(model: nn.Module) -> None:
    """Add what still waits to the factors' gradients: of modules that the last micro-batch did
    without. To be called before the optimizer's step, once gradients are complete."""
    for adapter in list_adapters(model).values():
        kept = adapter.accumulator
        if kept is None or not kept.waits:
            continue
        with torch.enable_grad():
            block = adapter.delta_block()
        if kept.layout is None:  # restored, and not called since
            merge_deltas(None, (adapter.out_features, adapter.in_features), [block])
        grads = kept.gradients(block, tuple(p.requires_grad for p in adapter.params))
        for parameter, grad in zip(adapter.params, grads, strict=True):
            if grad is None:
                continue
            if parameter.grad is None:
                parameter.grad = grad
            else:
                parameter.grad.add_(grad)


def drop_gradients(model: nn.Module) -> None:
    """Forget what waits, and that a model was ever told of micro-batches."""
    for adapter in list_adapters(model).values():
        adapter.accumulator = None


def waiting_sums(model: nn.Module) -> dict[str, Tensor]:
    """Matrix name -> what its deltas' gradients have been summed up to, in the middle of a step."""
    kept = {name: adapter.accumulator for name, adapter in list_adapters(model).items()}
    return {n: k.sums for n, k in kept.items() if k is not None and k.sums is not None}


def restore_sums(model: nn.Module, sums: Mapping[str, Tensor]) -> bool:
    """Go on from :func:`waiting_sums`, with the factors of that time.

    Returns:
        Whether all could be restored: only where the same library makes the deltas.
    """
    adapters = list_adapters(model)
    taken = {n for n in sums if n in adapters and adapters[n].delta_block().by_native}
    for name in taken:
        adapters[name].accumulator = accumulator = Accumulator()
        accumulator.sums = sums[name].clone()
    return len(taken) == len(sums)
