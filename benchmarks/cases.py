"""Builds what is measured: one layer, a stack of ViT blocks."""

import copy
from dataclasses import dataclass

import torch
from measure import Case, autocast
from mmseg.models.backbones.vit import TransformerEncoderLayer
from torch import Tensor, nn
from variants import Variant, tune

from snella_seg.inject import accumulate_gradients


@dataclass(frozen=True)
class Setting:
    """What all cases of a table share."""

    device: torch.device
    dtype: str = "fp32"
    rank: int = 32
    batch: int = 1
    tokens: int = 1025
    micro_batches: int = 1
    sparsity: float = 0.9


def fill_zeros(model: nn.Module) -> nn.Module:
    """Give small random values to parameters that start as zeros or ones throughout."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and (parameter == parameter.flatten()[0]).all():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


# One layer


class Projection(nn.Module):
    """Named linear layers with a common input; the results are not joined."""

    def __init__(self, layers: dict[str, nn.Linear]) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(x) for layer in self.children())


def linear_case(
    kind: str, shape: tuple[int, int], variant: Variant, label: str, setting: Setting
) -> Case:
    """One linear layer (out, in), or q, k and v for ``kind='qkv'``, with all gradients it passes.

    q, k and v are packed where they are in a stock model, and three layers for the reference and
    LoRA.
    """
    rows, columns = shape
    separate = kind == "qkv" and variant.method in ("reference", "lora")
    names = ("q", "k", "v") if separate else (kind,)
    rows = rows // len(names)
    model = Projection({name: nn.Linear(columns, rows) for name in names}).to(setting.device)
    model = tune(model, variant, setting.rank, setting.sparsity, targets=["*"])
    return gradient_case(
        variant.key, label, model, (setting.batch, setting.tokens, columns), setting
    )


def gradient_case(
    key: str, label: str, model: nn.Module, shape: tuple[int, ...], setting: Setting
) -> Case:
    """A module on a random input that takes a gradient, with a random gradient of the output.

    Of several micro-batches all but the last one's backward pass are in the step's forward pass.
    """
    model.to(setting.device).train()
    x = torch.randn(shape, device=setting.device, requires_grad=True)

    def micro_batch(more):
        if setting.micro_batches > 1:
            accumulate_gradients(model, more)
        with autocast(setting.device, setting.dtype):
            y = model(x)
        return y if isinstance(y, tuple) else (y,)

    def forward():
        for _ in range(setting.micro_batches - 1):
            backward(micro_batch(True))
        return micro_batch(False)

    grads = []

    def backward(ys):
        if not grads:  # in the warm-up, so that a forward pass that fails does so when measured
            grads.extend(torch.randn_like(y) for y in ys)
        torch.autograd.backward(ys, grads)

    def finish():
        x.grad = None
        model.zero_grad(set_to_none=True)

    return Case(key, label, forward, backward, finish, [model], [x])


# Blocks


def make_blocks(width: int, heads: int, hidden: int, layers: int = 1) -> nn.Module:
    """A stack of mmseg's ViT blocks without drop-path."""
    blocks = [
        TransformerEncoderLayer(width, heads, hidden, attn_cfg=dict(), ffn_cfg=dict())
        for _ in range(layers)
    ]
    return fill_zeros(nn.Sequential(*blocks))


def block_case(stock: nn.Module, variant: Variant, setting: Setting) -> Case:
    """A copy of a stack of blocks, tuned as ``variant`` says; its input takes a gradient."""
    model = copy.deepcopy(stock).to(setting.device)
    model = tune(model, variant, setting.rank, setting.sparsity)
    width = stock[0].attn.embed_dims
    shape = (setting.batch, setting.tokens, width)
    return gradient_case(variant.key, variant.label, model, shape, setting)
