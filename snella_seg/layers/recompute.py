"""Recomputing the outputs of GELU and LayerNorm in backward instead of keeping them."""

from typing import Any

from torch import Tensor, nn

from ..engine.precision import autocast_dtype
from ..engine.recipe import Recipe, mark
from .compiling import is_compiling

RECOMPUTED = (nn.GELU, nn.LayerNorm)


def enable_recompute(model: nn.Module) -> int:
    """Let adapted linear layers keep how their input was made, where a GELU or LayerNorm made it.

    These keep their input for backward, so their output need not be kept as well: in a ViT block
    that is 6 of 16 activations of the width, for the time of a GELU and two LayerNorms once more.
    Results are the same bits.

    Args:
        model: any model; its modules are left as they are but for a forward hook.

    Returns:
        The number of modules that now mark their outputs.
    """
    disable_recompute(model)  # a second hook would do the work twice
    found = [module for module in model.modules() if isinstance(module, RECOMPUTED)]
    for module in found:
        module.register_forward_hook(_mark_output, prepend=True)
    return len(found)


def disable_recompute(model: nn.Module) -> None:
    """Undo :func:`enable_recompute`."""
    for module in model.modules():
        for key in [k for k, hook in module._forward_hooks.items() if hook is _mark_output]:
            del module._forward_hooks[key]


def _mark_output(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
    if is_compiling():  # the compiler decides itself what it keeps
        return
    if output.requires_grad and len(inputs) == 1 and isinstance(inputs[0], Tensor):
        recipe = Recipe(module.forward, autocast_dtype(output.device.type))
        mark(output, recipe, inputs)
