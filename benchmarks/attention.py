"""Self-attention written out, so that every baseline sees plain linear layers.

``nn.MultiheadAttention`` and Swin's ``WindowMSA`` keep q, k and v packed, and the former never
calls its output projection. LoRA and the reference way of SNELLA need layers of their own; both
stock modules are rebuilt here with the same weights (views, not copies) and the same results.
"""

import torch
import torch.nn.functional as F
from mmseg.models.backbones.swin import WindowMSA
from torch import Tensor, nn


class PlainAttention(nn.Module):
    """Projections as ``nn.Linear`` and a choice of two ways to attend.

    Args:
        in_proj: packed weight (3E, E) and bias (3E,) or None.
        out_proj: weight (E, E) and bias (E,) or None.
        heads: number of heads.
        fused: ``scaled_dot_product_attention``; else the attention matrix is built, as
            ``nn.MultiheadAttention(need_weights=True)`` does for mmcv and as ``WindowMSA`` does.
        packed: one linear layer for q, k and v instead of three.
    """

    def __init__(self, in_proj, out_proj, heads: int, fused: bool, packed: bool) -> None:
        super().__init__()
        self.heads, self.fused, self.packed = heads, fused, packed
        weight, bias = in_proj
        if packed:
            self.qkv = linear_of(weight, bias)
        else:
            biases = (None,) * 3 if bias is None else bias.chunk(3)
            self.q, self.k, self.v = map(linear_of, weight.chunk(3), biases)
        self.proj = linear_of(*out_proj)

    def project(self, x: Tensor) -> list[Tensor]:
        """(N, L, E) -> q, k, v, each (N, heads, L, E / heads)."""
        parts = self.qkv(x).chunk(3, dim=-1) if self.packed else (self.q(x), self.k(x), self.v(x))
        return [t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in parts]

    def join(self, x: Tensor) -> Tensor:
        """(N, heads, L, E / heads) -> (N, L, E), projected."""
        return self.proj(x.transpose(1, 2).flatten(2))


class GlobalAttention(PlainAttention):
    """Stands in for the ``nn.MultiheadAttention`` within mmcv's: sequence first, self-attention."""

    def forward(self, query, key=None, value=None, **_):
        q, k, v = self.project(query.transpose(0, 1))
        if self.fused:
            return self.join(F.scaled_dot_product_attention(q, k, v)).transpose(0, 1), None
        weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1), dim=-1)
        out = self.join(weights @ v).transpose(0, 1)
        return out, weights.mean(dim=1)  # mmcv asks for the mean over heads and drops it


class WindowAttention(PlainAttention):
    """Stands in for mmseg's ``WindowMSA``: relative position bias, mask of shifted windows."""

    def __init__(self, stock: WindowMSA, fused: bool, packed: bool) -> None:
        in_proj, out_proj = stock.qkv, stock.proj
        super().__init__(
            (in_proj.weight, in_proj.bias),
            (out_proj.weight, out_proj.bias),
            stock.num_heads,
            fused,
            packed,
        )
        self.relative_position_bias_table = stock.relative_position_bias_table
        self.register_buffer("relative_position_index", stock.relative_position_index)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.project(x)
        length = x.shape[1]
        index = self.relative_position_index.flatten()
        bias = self.relative_position_bias_table[index].view(length, length, -1)
        bias = bias.permute(2, 0, 1)  # (heads, L, L)
        if self.fused:
            return self.join(self._attend(q, k, v, bias.to(q.dtype), mask))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias
        if mask is not None:
            scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        return self.join(torch.softmax(scores, dim=-1) @ v)

    def _attend(self, q, k, v, bias: Tensor, mask: Tensor | None) -> Tensor:
        """Fused attention with the (heads, L, L) bias and a (windows, L, L) mask added."""
        if mask is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        bias = bias + mask[:, None].to(bias.dtype)  # (windows, heads, L, L)
        if len(mask) == len(q):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        # Several images share the masks: count windows as heads, so that nothing is repeated.
        q, k, v = (t.unflatten(0, (-1, len(mask))).flatten(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.flatten(0, 1)[None])
        return out.unflatten(1, (len(mask), -1)).flatten(0, 1)


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """An ``nn.Linear`` around existing values, which are shared."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach())
    return layer


def plain_attention(model: nn.Module, fused: bool, packed: bool) -> nn.Module:
    """Replace all stock attention within ``model`` in place; it has no dropout in our configs."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.MultiheadAttention):
            new = GlobalAttention(
                (module.in_proj_weight, module.in_proj_bias),
                (module.out_proj.weight, module.out_proj.bias),
                module.num_heads,
                fused,
                packed,
            )
        elif isinstance(module, WindowMSA):
            new = WindowAttention(module, fused, packed)
        else:
            continue
        replace_module(model, name, new)
    return model


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` where ``name`` was."""
    owner, _, last = name.rpartition(".")
    setattr(model.get_submodule(owner), last, new)
