"""Attention of stock backbones by torch's fused kernels, which build no full attention matrix.

Stock modules become subclasses of themselves whose forward calls
``scaled_dot_product_attention``; parameters, names and results (to rounding) stay. What is within
mmcv's MultiheadAttention becomes a :class:`snella_seg.layers.FusedMultiheadAttention`; timm calls
the fused attention by itself.
"""

import importlib
import sys

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmseg.models.backbones.beit import BEiTAttention
from mmseg.models.backbones.mae import MAEAttention
from mmseg.models.backbones.swin import WindowMSA
from torch import Tensor, nn

from ..inject import FAMILIES
from ..layers import AdaptedModule, FusedMultiheadAttention


class FusedWindowMSA(WindowMSA):
    """Swin's window attention: relative position bias, and a mask where windows are shifted."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``x`` (batch * windows, tokens, channels), ``mask`` (windows, tokens, tokens)."""
        tokens = x.shape[1]
        q, k, v = _split(self.qkv(x), self.num_heads)
        bias = _position_bias(self, tokens, q.dtype)  # (1, heads, tokens, tokens)
        if mask is not None:
            bias = bias + mask[:, None].to(q.dtype)  # (windows, heads, tokens, tokens)
        several_images = mask is not None and len(mask) < len(x)
        if several_images:  # they share the mask, which is not repeated with windows among heads
            q, k, v = (t.unflatten(0, (-1, len(mask))).flatten(1, 2) for t in (q, k, v))
            bias = bias.flatten(0, 1)[None]
        out = _attend(q, k, v, bias, self)
        if several_images:
            out = out.unflatten(1, (len(mask), -1)).flatten(0, 1)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))


class _FusedBEiT:
    """Forward of BEiT's and MAE's attention; calls the projection, whose weight they read."""

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (batch, 1 + patches, channels)."""
        if self.bias != "qv_bias":
            qkv = self.qkv(x)
        else:
            bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
            adapted = isinstance(self.qkv, AdaptedModule)
            qkv = self.qkv.product(x, bias) if adapted else F.linear(x, self.qkv.weight, bias)
        q, k, v = _split(qkv, self.num_heads)
        position = None
        if self.relative_position_bias_table is not None:
            position = _position_bias(self, x.shape[1], q.dtype)
        out = _attend(q, k, v, position, self)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))


class FusedBEiTAttention(_FusedBEiT, BEiTAttention):
    pass


class FusedMAEAttention(_FusedBEiT, MAEAttention):
    pass


def fuse_attention(model: nn.Module) -> None:
    """Replace all attention of a backbone that is known here by the fused kind, in place.

    Which is known, the families tell (:attr:`snella_seg.inject.Family.attention`).
    """
    table = _known_attention()
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            continue  # what becomes of its weights, its owner knows
        fused = table.get(type(module))
        if fused is not None:
            module.__class__ = fused
        inner = getattr(module, "attn", None)
        if isinstance(module, MultiheadAttention) and isinstance(inner, nn.MultiheadAttention):
            inner.__class__ = table.get(type(inner), type(inner))
            if isinstance(inner, FusedMultiheadAttention):
                inner.returns_weights = False  # mmcv asks for the weights and discards them


def restore_attention(model: nn.Module) -> None:
    """Undo :func:`fuse_attention`."""
    stock = {fused: kind for kind, fused in _known_attention().items()}
    for module in model.modules():
        if isinstance(module, FusedMultiheadAttention):
            module.__dict__.pop("returns_weights", None)
        module.__class__ = stock.get(type(module), type(module))


def _known_attention() -> dict[type, type]:
    """Stock class -> fused class, of the packages that are imported."""
    table = {}
    for family in FAMILIES.values():
        for stock, fused in family.attention.items():
            if stock.partition(":")[0] in sys.modules:
                table[_resolve(stock)] = _resolve(fused)
    return table


def _resolve(path: str) -> type:
    module, _, name = path.partition(":")
    found: type = getattr(importlib.import_module(module), name)
    return found


def _split(qkv: Tensor, heads: int) -> Tensor:
    """(N, L, 3 * C) -> q, k and v, each (N, heads, L, C / heads)."""
    return qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)


def _position_bias(module: nn.Module, tokens: int, dtype: torch.dtype) -> Tensor:
    """The relative position bias of a module as (1, heads, tokens, tokens)."""
    table = module.relative_position_bias_table[module.relative_position_index.flatten()]
    return table.view(tokens, tokens, -1).permute(2, 0, 1)[None].to(dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, module: nn.Module) -> Tensor:
    dropout = module.attn_drop.p if module.training else 0.0
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=bias, dropout_p=dropout, scale=module.scale
    )
