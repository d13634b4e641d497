"""Families of backbones: one entry each, read by all that has to know an architecture.

A family of your own is an entry: ``FAMILIES["mine"] = Family(matrices={...})``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

QKV = ("q", "k", "v")
#: The order of the kinds of matrices in tables.
KINDS = (*QKV, "proj", "fc1", "fc2")


@dataclass(frozen=True)
class Family:
    """What is known of an architecture, as data; classes are named, so that none is imported.

    Args:
        matrices: end of a weight's name -> the kinds of the matrices stacked in it, by rows. These
            are what ``targets='auto'`` adapts.
        attention: ``'module:Class'`` of a stock attention -> that of the subclass of it which calls
            torch's fused kernels (:func:`snella_seg.models.fused_attention.fuse_attention`).
        mark: a weight by whose name the family's state dicts are known.
        timm_mark: likewise for the same architecture in timm.
        timm_names: pairs of how names begin in timm and here, ``{}`` a number; the first that fits
            is applied. For loading timm's files, and for writing such
            (:mod:`snella_seg.loading.names`).
    """

    matrices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    attention: Mapping[str, str] = field(default_factory=dict)
    mark: str | None = None
    timm_mark: str | None = None
    timm_names: tuple[tuple[str, str], ...] = ()


_MMCV_FFN = {"ffn.layers.0.0.weight": ("fc1",), "ffn.layers.1.weight": ("fc2",)}
_FUSED = "snella_seg.models.fused_attention"

#: Name -> family. BEiT's and MAE's projections are named as timm's.
FAMILIES: dict[str, Family] = {
    "mmseg ViT": Family(
        matrices={
            "attn.attn.in_proj_weight": QKV,
            "attn.attn.out_proj.weight": ("proj",),
            **_MMCV_FFN,
        },
        attention={"torch.nn:MultiheadAttention": "snella_seg.layers:FusedMultiheadAttention"},
        mark="layers.0.attn.attn.in_proj_weight",
        timm_mark="blocks.0.attn.qkv.weight",
        timm_names=(
            ("patch_embed.proj.", "patch_embed.projection."),
            ("norm_pre.", "ln_pre."),
            ("norm.", "ln1."),
            ("blocks.{}.norm{}.", "layers.{}.ln{}."),
            ("blocks.{}.attn.qkv.", "layers.{}.attn.attn.in_proj_"),
            ("blocks.{}.attn.proj.", "layers.{}.attn.attn.out_proj."),
            ("blocks.{}.mlp.fc1.", "layers.{}.ffn.layers.0.0."),
            ("blocks.{}.mlp.fc2.", "layers.{}.ffn.layers.1."),
        ),
    ),
    "mmseg Swin": Family(
        matrices={"attn.w_msa.qkv.weight": QKV, "attn.w_msa.proj.weight": ("proj",), **_MMCV_FFN},
        attention={"mmseg.models.backbones.swin:WindowMSA": f"{_FUSED}:FusedWindowMSA"},
        mark="stages.0.blocks.0.attn.w_msa.qkv.weight",
        timm_names=(
            ("patch_embed.proj.", "patch_embed.projection."),
            ("patch_embed.norm.", "patch_embed.norm."),
            ("layers.{}.blocks.{}.norm{}.", "stages.{}.blocks.{}.norm{}."),
            ("layers.{}.blocks.{}.attn.", "stages.{}.blocks.{}.attn.w_msa."),
            ("layers.{}.blocks.{}.mlp.fc1.", "stages.{}.blocks.{}.ffn.layers.0.0."),
            ("layers.{}.blocks.{}.mlp.fc2.", "stages.{}.blocks.{}.ffn.layers.1."),
        ),
    ),
    "mmseg BEiT and MAE": Family(
        matrices={"attn.qkv.weight": QKV, "attn.proj.weight": ("proj",), **_MMCV_FFN},
        attention={
            "mmseg.models.backbones.beit:BEiTAttention": f"{_FUSED}:FusedBEiTAttention",
            "mmseg.models.backbones.mae:MAEAttention": f"{_FUSED}:FusedMAEAttention",
        },
    ),
    "timm ViT and Swin": Family(
        matrices={
            "attn.qkv.weight": QKV,
            "attn.proj.weight": ("proj",),
            "mlp.fc1.weight": ("fc1",),
            "mlp.fc2.weight": ("fc2",),
        },
    ),
}


def auto_kinds(weight_name: str) -> tuple[str, ...] | None:
    """The kinds of the matrices that a weight stacks by rows; None for one of no family."""
    for family in FAMILIES.values():
        for ending, kinds in family.matrices.items():
            if weight_name == ending or weight_name.endswith("." + ending):
                return kinds
    return None
