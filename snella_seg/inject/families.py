"""Families of backbones: one entry each, read by all that has to know an architecture.

A family of your own is an entry: ``FAMILIES["mine"] = Family(matrices={...})``.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import nn

QKV = ("q", "k", "v")
#: The order of the kinds of matrices in tables. ``qkv`` is a packed projection that cannot be told
#: apart by rows, ``gate`` the gate of an MLP, ``shortcut`` a projection beside a block's branches,
#: ``expand`` and ``project`` are those of inverted bottlenecks.
KINDS = (*QKV, "qkv", "proj", "gate", "fc1", "fc2", "shortcut", "expand", "project")


@dataclass(frozen=True)
class Family:
    """What is known of an architecture, as data; classes are named, so that none is imported.

    Names of weights are ends of their whole names, ``{}`` in them a number. All linear maps of
    encoder blocks are adapted by ``targets='auto'``, named here or not; an entry says what their
    kinds are, and how packed ones are split.

    Args:
        matrices: end of a weight's name -> the kinds of the matrices stacked in it, by rows.
        left_out: end of a weight's name -> why ``'auto'`` leaves it out.
        by_heads: ``'module:Class'`` of attention whose ``qkv`` stacks q, k and v head by head, so
            that it is one matrix.
        attention: ``'module:Class'`` of a stock attention -> that of the subclass of it which calls
            torch's fused kernels (:func:`snella_seg.models.fused_attention.fuse_attention`).
        modules: Python modules of its backbones, as ``'timm.models.eva'``; the next two are of
            these alone.
        timm_options: arguments that a model needs as a backbone, where a config does not say
            otherwise.
        sizes: of the images that it takes: ``'any'``, ``'img_size'`` (that of its arguments alone),
            ``'multiples of img_size'``, or a number that height and width must be divisible by.
        mark: a weight by whose name the family's state dicts are known.
        timm_mark: likewise for the same architecture in timm.
        timm_names: pairs of how names begin in timm and here, ``{}`` a number; the first that fits
            is applied. For loading timm's files, and for writing such
            (:mod:`snella_seg.loading.names`).
    """

    matrices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    by_heads: tuple[str, ...] = ()
    attention: Mapping[str, str] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    timm_options: Mapping[str, Any] = field(default_factory=dict)
    sizes: str | int = "any"
    mark: str | None = None
    timm_mark: str | None = None
    timm_names: tuple[tuple[str, str], ...] = ()


_MMCV_FFN = {"ffn.layers.0.0.weight": ("fc1",), "ffn.layers.1.weight": ("fc2",)}
_TIMM_BLOCK = {
    "attn.qkv.weight": QKV,
    "attn.proj.weight": ("proj",),
    "mlp.fc1.weight": ("fc1",),
    "mlp.fc2.weight": ("fc2",),
}
_FUSED = "snella_seg.models.fused_attention"
#: Of one stage, whose number is ``#``; timm has no MiT, so the first names are its authors'.
_MIT_NAMES = (
    ("patch_embed#.proj.", "layers.#.0.projection."),
    ("patch_embed#.norm.", "layers.#.0.norm."),
    ("block#.{}.attn.qkv.", "layers.#.1.{}.attn.attn.in_proj_"),
    ("block#.{}.attn.proj.", "layers.#.1.{}.attn.attn.out_proj."),
    ("block#.{}.mlp.fc1.", "layers.#.1.{}.ffn.layers.0."),
    ("block#.{}.mlp.dwconv.dwconv.", "layers.#.1.{}.ffn.layers.1."),
    ("block#.{}.mlp.fc2.", "layers.#.1.{}.ffn.layers.4."),
    ("block#.{}.", "layers.#.1.{}."),
    ("norm#.", "layers.#.2."),
)
_POSITIONS = "it makes position biases of coordinates, not features"

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
        timm_mark="layers.0.blocks.0.attn.qkv.weight",
        timm_names=(
            ("patch_embed.proj.", "patch_embed.projection."),
            ("patch_embed.norm.", "patch_embed.norm."),
            ("layers.{}.blocks.{}.norm{}.", "stages.{}.blocks.{}.norm{}."),
            ("layers.{}.blocks.{}.attn.", "stages.{}.blocks.{}.attn.w_msa."),
            ("layers.{}.blocks.{}.mlp.fc1.", "stages.{}.blocks.{}.ffn.layers.0.0."),
            ("layers.{}.blocks.{}.mlp.fc2.", "stages.{}.blocks.{}.ffn.layers.1."),
            ("layers.{}.downsample.", "stages.{}.downsample."),
        ),
    ),
    "mmseg BEiT and MAE": Family(
        matrices={"attn.qkv.weight": QKV, "attn.proj.weight": ("proj",), **_MMCV_FFN},
        attention={
            "mmseg.models.backbones.beit:BEiTAttention": f"{_FUSED}:FusedBEiTAttention",
            "mmseg.models.backbones.mae:MAEAttention": f"{_FUSED}:FusedMAEAttention",
        },
        mark="layers.0.attn.qkv.weight",
        timm_mark="blocks.0.attn.qkv.weight",
        timm_names=(
            ("patch_embed.proj.", "patch_embed.projection."),
            ("norm.", "ln1."),
            ("blocks.{}.norm{}.", "layers.{}.ln{}."),
            ("blocks.{}.mlp.fc1.", "layers.{}.ffn.layers.0.0."),
            ("blocks.{}.mlp.fc2.", "layers.{}.ffn.layers.1."),
            ("blocks.{}.", "layers.{}."),
        ),
        modules=("mmseg.models.backbones.beit", "mmseg.models.backbones.mae"),
        sizes="img_size",
    ),
    "mmseg MiT": Family(
        matrices={"ffn.layers.0.weight": ("fc1",), "ffn.layers.4.weight": ("fc2",)},
        mark="layers.0.1.0.attn.attn.in_proj_weight",
        timm_mark="block1.0.attn.qkv.weight",
        timm_names=tuple(
            (names[0].replace("#", str(stage + 1)), names[1].replace("#", str(stage)))
            for stage in range(4)
            for names in _MIT_NAMES
        ),
    ),
    "timm ViT": Family(
        matrices=_TIMM_BLOCK,
        modules=tuple(f"timm.models.{m}" for m in ("vision_transformer", "deit", "eva")),
        timm_options=dict(dynamic_img_size=True, dynamic_img_pad=True),
    ),
    "timm BEiT": Family(modules=("timm.models.beit",), sizes="img_size"),
    "timm EVA-02 and DINOv3": Family(
        matrices={
            **{f"attn.{kind}_proj.weight": (kind,) for kind in QKV},
            "mlp.fc1_g.weight": ("gate",),
            "mlp.fc1_x.weight": ("fc1",),
        },
    ),
    "DINOv2's own SwiGLU": Family(
        matrices={"mlp.w12.weight": ("gate", "fc1"), "mlp.w3.weight": ("fc2",)}
    ),
    "timm Swin": Family(
        left_out={"cpb_mlp.{}.weight": _POSITIONS, "meta_mlp.fc{}.weight": _POSITIONS},
        modules=("timm.models.swin_transformer", "timm.models.swin_transformer_v2"),
        timm_options=dict(strict_img_size=False),
        sizes=4,
    ),
    "timm PVT v2 and Twins": Family(
        matrices={"attn.q.weight": ("q",), "attn.kv.weight": ("k", "v")},
    ),
    "timm Hiera": Family(
        matrices={"blocks.{}.proj.weight": ("shortcut",)},
        modules=("timm.models.hiera",),
        sizes="img_size",
    ),
    "timm SAM ViT": Family(modules=("timm.models.vision_transformer_sam",), sizes=16),
    "timm CaiT and Swin v2 CR": Family(
        left_out={"meta_mlp.fc{}.weight": _POSITIONS},
        modules=("timm.models.cait", "timm.models.swin_transformer_v2_cr"),
        sizes="img_size",
    ),
    "timm SAM 2 Hiera": Family(modules=("timm.models.hieradet_sam2",), sizes=32),
    "timm TinyViT": Family(
        matrices={
            "blocks.{}.conv1.conv.weight": ("expand",),
            "blocks.{}.conv3.conv.weight": ("project",),
        },
        by_heads=("timm.models.tiny_vit:Attention",),
    ),
    "timm MaxViT": Family(
        matrices={
            "conv.conv1_1x1.weight": ("expand",),
            "conv.conv3_1x1.weight": ("project",),
            "conv.shortcut.expand.weight": ("shortcut",),
        },
        left_out={"conv.se.fc{}.weight": "it gates whole channels of an image"},
        by_heads=("timm.models.maxxvit:AttentionCl", "timm.models.maxxvit:Attention2d"),
        modules=("timm.models.maxxvit",),
        sizes="multiples of img_size",
    ),
}


def auto_kinds(weight_name: str) -> tuple[str, ...] | None:
    """The kinds of the matrices that a weight stacks by rows; None for one that no family names."""
    return _look_up(weight_name, "matrices")


def why_left_out(weight_name: str) -> str | None:
    """Why ``targets='auto'`` leaves a weight out; None for one that is adapted."""
    return _look_up(weight_name, "left_out")


def stacks_by_heads(module: nn.Module) -> bool:
    """Whether a packed projection has q, k and v of one head after those of another."""
    path = f"{type(module).__module__}:{type(module).__name__}"
    return any(path in family.by_heads for family in FAMILIES.values())


def family_of(python_modules: Iterable[str]) -> Family:
    """The entry about backbones that are defined in one of these modules; an empty one for none."""
    known = set(python_modules)
    return next((f for f in FAMILIES.values() if not known.isdisjoint(f.modules)), Family())


def _look_up(weight_name: str, table: str) -> Any:
    for family in FAMILIES.values():
        for ending, value in getattr(family, table).items():
            if _ends(ending).search(weight_name):
                return value
    return None


@cache
def _ends(ending: str) -> re.Pattern[str]:
    """Pattern of a name that ends so, after a dot or from its beginning."""
    return re.compile(r"(^|\.)" + re.escape(ending).replace(r"\{\}", r"\d+") + "$")
