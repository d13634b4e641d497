"""The rows of the tables: ways to tune one and the same stock module."""

from collections.abc import Callable
from dataclasses import dataclass, field

from attention import plain_attention
from baselines import add_lora, add_reference
from torch import nn

from snella_seg.inject import add_adapters, freeze_base, get_method
from snella_seg.layers import AdaptedMultiheadAttention
from snella_seg.layers.recompute import enable_recompute

HEADS = 2
V2 = dict(kernel="centred", sparsifier="normalised")
PUBLISHED_DROPOUT = dict(dropout=0.1, drop_path=0.1)


@dataclass(frozen=True)
class Variant:
    """One way to tune.

    Args:
        key: name in raw results and on the command line.
        label: name in tables.
        method: 'reference', 'snella', 'lora' (peft's), 'lora_ours', 'full' or 'frozen'.
        fused: attention by ``scaled_dot_product_attention``; else as the stock module does it.
        recompute: GELU and LayerNorm outputs are recomputed in backward (ours only).
        options: of the adapter.
    """

    key: str
    label: str
    method: str
    fused: bool = False
    recompute: bool = False
    options: dict = field(default_factory=dict)


VARIANTS = {
    v.key: v
    for v in (
        Variant("reference", "SNELLA, reference way", "reference"),
        Variant(
            "reference_reentrant",
            "SNELLA, reference way, reentrant checkpointing",
            "reference",
            options=dict(reentrant=True),
        ),
        Variant("reference_sdpa", "SNELLA, reference way, SDPA", "reference", fused=True),
        Variant(
            "reference_dropout",
            "SNELLA, reference way, its dropout and drop-path",
            "reference",
            options=PUBLISHED_DROPOUT,
        ),
        Variant("merged", "SNELLA, ours, merged", "snella", fused=True),
        Variant(
            "merged_recompute",
            "SNELLA, ours, merged, recompute",
            "snella",
            fused=True,
            recompute=True,
        ),
        Variant(
            "split",
            "SNELLA, ours, split (dropout, drop-path)",
            "snella",
            fused=True,
            options=PUBLISHED_DROPOUT,
        ),
        Variant(
            "v2",
            "SNELLA v2, ours, merged",
            "snella",
            fused=True,
            options=V2,
        ),
        Variant(
            "v2_recompute",
            "SNELLA v2, ours, merged, recompute",
            "snella",
            fused=True,
            recompute=True,
            options=V2,
        ),
        Variant(
            "v2_half",
            "SNELLA v2, ours, merged, recompute, half of the tokens",
            "snella",
            fused=True,
            recompute=True,
            options=dict(V2, token_share=0.5),
        ),
        Variant("lora", "LoRA (peft), SDPA", "lora", fused=True),
        Variant("lora_ours", "LoRA, ours, SDPA", "lora_ours", fused=True),
        Variant(
            "lora_ours_recompute",
            "LoRA, ours, SDPA, recompute",
            "lora_ours",
            fused=True,
            recompute=True,
        ),
        Variant("lora_stock", "LoRA (peft), stock attention", "lora"),
        Variant("full", "full, stock attention", "full"),
        Variant("full_sdpa", "full, SDPA", "full", fused=True),
        Variant("frozen_stock", "frozen, stock attention", "frozen"),
        Variant("frozen", "frozen, SDPA", "frozen", fused=True),
    )
}
#: A single layer has no attention: its rows, with the labels that then apply.
LINEAR = {
    "reference": "SNELLA, reference way",
    "reference_reentrant": "SNELLA, reference way, reentrant checkpointing",
    "reference_dropout": "SNELLA, reference way, its dropout and drop-path",
    "merged": "SNELLA, ours, merged",
    "split": "SNELLA, ours, split (dropout, drop-path)",
    "v2": "SNELLA v2, ours, merged",
    "v2_half": "SNELLA v2, ours, merged, half of the tokens",
    "lora": "LoRA (peft)",
    "lora_ours": "LoRA, ours",
    "full": "full",
    "frozen": "frozen",
}
#: What the sections measure unless the command says otherwise.
LINEAR_ROWS = [key for key in LINEAR if key != "v2_half"]
BLOCK = [key for key in VARIANTS if key not in ("lora_stock", "v2_half")]
MODEL = [
    *("reference", "merged", "merged_recompute", "split", "v2_recompute", "lora", "lora_ours"),
    "lora_ours_recompute",
    *("full", "full_sdpa", "frozen_stock", "frozen"),
]


def tune(
    model: nn.Module, variant: Variant, rank: int, sparsity: float = 0.9, targets="auto"
) -> nn.Module:
    """Make a stock module train as ``variant`` says, in place.

    Args:
        model: one layer, one block or a backbone, with the weights in place.
        rank: of the adapters or of LoRA.
        sparsity: of SNELLA's deltas.
        targets: for SNELLA, see :func:`snella_seg.inject.select_matrices`.
    """
    if variant.method in ("snella", "lora_ours"):
        if variant.method == "snella":
            adapter = dict(rank=rank, heads=HEADS, initial_sparsity=sparsity, **variant.options)
        else:
            lora = get_method("lora")
            adapter = dict(rank=rank, **lora.defaults, **lora.fixed)
        adapters = add_adapters(model, adapter, targets)
        if variant.method == "lora_ours":
            for each in adapters.values():  # as peft's here: nothing multiplies with zeros
                nn.init.normal_(each.out_factors, std=1e-3)
        freeze_base(model, trainable=[])
        for module in model.modules():
            if isinstance(module, AdaptedMultiheadAttention):
                module.returns_weights = not variant.fused  # as SnellaBackbone does
        if variant.recompute:
            enable_recompute(model)
        return model
    if variant.method in ("reference", "lora"):
        plain_attention(model, variant.fused, packed=False)
    elif variant.fused:
        plain_attention(model, fused=True, packed=True)
    prepare: dict[str, Callable] = {
        "reference": lambda: add_reference(
            model, rank=rank, sparsity=sparsity, heads=HEADS, **variant.options
        ),
        "lora": lambda: add_lora(model, rank),
        "full": lambda: model.requires_grad_(True),
        "frozen": lambda: model.requires_grad_(False),
    }
    prepare[variant.method]()
    return model
