"""``nn.MultiheadAttention`` by torch's fused kernels, and one whose weights carry adapters."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine.branch import draw_kept
from .compiling import is_compiling
from .module import AdaptedModule


class FusedMultiheadAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` through ``scaled_dot_product_attention``.

    That builds no full attention matrix, unless the attention weights are asked for.
    ``returns_weights=False`` says that the caller discards them (as mmcv's MultiheadAttention
    does), whatever ``need_weights`` it passes. Parameters, names and results (to rounding) are the
    stock module's.
    """

    returns_weights = True

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Arguments and results of ``nn.MultiheadAttention``."""
        special = self.bias_k is not None or self.add_zero_attn or is_causal or query.ndim != 3
        if special or not self._qkv_same_embed_dim:  # rare: the stock forward
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask,
                average_attn_weights, is_causal,
            )  # fmt: skip
        q, k, v = (self._split_heads(t) for t in self._project(query, key, value))
        mask = _additive_mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights and self.returns_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, dropout) if dropout else weights
            out = weights @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        out = self.out_proj(out.transpose(1, 2).flatten(2))  # (N, L, E)
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def project_rows(
        self,
        x: Tensor,
        bias: Tensor | None,
        start: int = 0,
        stop: int | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """The product with the rows ``start:stop`` of the packed weight."""
        return F.linear(x, self.in_proj_weight[start:stop], bias)

    def draw_kept(self, entries: int) -> Tensor | None:
        """What drop-path of the projections keeps of a batch; None for all."""
        return None

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> Sequence[Tensor]:
        """Project to q, k and v, each (N, L, E); one product where they share their input."""
        width, bias = self.embed_dim, self.in_proj_bias
        shared = _same(query, key) and _same(query, value)
        inputs = (query, key, value)
        if not self.batch_first:
            inputs = (query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1))
        if shared:
            return self.project_rows(inputs[0], bias).chunk(3, dim=-1)
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        kept = self.draw_kept(len(inputs[0]))
        return [
            self.project_rows(t, b, i * width, (i + 1) * width, kept)
            for i, (t, b) in enumerate(zip(inputs, biases, strict=True))
        ]

    def _split_heads(self, x: Tensor) -> Tensor:
        """(N, L, E) -> (N, heads, L, E / heads)."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)


class AdaptedMultiheadAttention(AdaptedModule, FusedMultiheadAttention):
    """Mixin for ``nn.MultiheadAttention``: q, k and v are three matrices of ``in_proj_weight``.

    The projections run through :func:`snella_seg.engine.adapted_linear`.
    """

    adapted_weight_name = "in_proj_weight"

    def forward(self, *args, **options):  # type: ignore[no-untyped-def]
        """Arguments and results of ``nn.MultiheadAttention``."""
        forward = type(self).stock_class.forward  # type: ignore[attr-defined]
        if forward is nn.MultiheadAttention.forward:
            forward = FusedMultiheadAttention.forward
        return forward(self, *args, **options)  # a class with its own reads effective weights

    @property
    def in_proj_weight(self) -> Tensor:  # type: ignore[override]
        """The effective packed weight, (3 E, E)."""
        return self.effective_weight()

    def stop_adapting(self) -> None:
        super().stop_adapting()
        if not isinstance(self, FusedMultiheadAttention):
            self.__dict__.pop("returns_weights", None)

    def project_rows(
        self,
        x: Tensor,
        bias: Tensor | None,
        start: int = 0,
        stop: int | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        return self.product(x, bias, start, stop, kept)

    def draw_kept(self, entries: int) -> Tensor | None:
        return draw_kept(entries, self.drops[1])


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same values of the same graph, if seen through two views."""
    if a is b or is_compiling():  # which knows no addresses
        return a is b
    return (
        a.data_ptr() == b.data_ptr()
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.requires_grad == b.requires_grad
        and a._base is not None
        and a._base is b._base
    )


def _additive_mask(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor
) -> Tensor | None:
    """Both masks of ``nn.MultiheadAttention`` as one that adds to the (N, heads, L, S) scores."""

    def additive(mask: Tensor) -> Tensor:
        if mask.dtype != torch.bool:
            return mask.to(q.dtype)
        return torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, float("-inf"))

    total = None
    if attn_mask is not None:
        total = additive(attn_mask)
        if total.ndim == 3:  # (N * heads, L, S)
            total = total.unflatten(0, q.shape[:2])
    if key_padding_mask is not None:
        padding = additive(key_padding_mask)[:, None, None, :]
        total = padding if total is None else total + padding
    return total
