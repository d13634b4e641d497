"""How Hugging Face's transformers name weights: in published files, and in memory since version 5.

Entries of :data:`snella_seg.loading.formats.FORMATS`: name, marks, names, values.
"""

import re

from torch import Tensor

PREFIXES = (
    "vit.",
    "deit.",
    "beit.",
    "dinov2.",
    "dinov2_with_registers.",
    "dinov3_vit.",
    "swin.",
    "segformer.",
)

_BLOCK = (
    (r"\.attention\.(attention|self)\.", ".attention."),
    (r"\.attention\.(?:q_proj|query)\.", ".attn.q."),
    (r"\.attention\.(?:k_proj|key)\.", ".attn.k."),
    (r"\.attention\.(?:v_proj|value)\.", ".attn.v."),
    (r"\.attention\.(?:o_proj|output\.dense)\.", ".attn.proj."),
    (r"\.attention\.relative_position_bias", ".attn.relative_position_bias"),
    (r"\.relative_position_bias\.relative_position_bias", ".relative_position_bias"),
    (r"\.(?:layernorm_before|layer_norm_1)\.", ".norm1."),
    (r"\.(?:layernorm_after|layer_norm_2)\.", ".norm2."),
    (r"\.(?:intermediate\.dense|mlp\.dense1)\.", ".mlp.fc1."),
    (r"\.(?:output\.dense|mlp\.dense2)\.", ".mlp.fc2."),
)
_GATED = ((r"\.mlp\.gate_proj\.", ".mlp.fc1_g."), (r"\.mlp\.up_proj\.", ".mlp.fc1_x."))
_VIT = (
    (r"^embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.", ""),
    (r"^(?:encoder\.|model\.)?layers?\.", "blocks."),
    (r"^(?:encoder\.relative|shared)_position_bias\.", "rel_pos_bias."),
    (r"^(blocks\.\d+)\.relative_position_bias\.", r"\1.attn."),
    (r"^layernorm\.", "norm."),
    *_BLOCK,
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.lambda_(\d)$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.(?:weights_out|down_proj)\.", ".mlp.fc2."),
    (r"\.mlp\.up_proj\.", ".mlp.fc1."),
)
_SWIN = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^encoder\.", ""),
    (r"^layernorm\.", "norm."),
    *_BLOCK,
)
_SEGFORMER = (
    (r"^encoder\.patch_embeddings\.(\d+)\.layer_norm\.", r"patch_embed\1.norm."),
    (r"^encoder\.patch_embeddings\.(\d+)\.", r"patch_embed\1."),
    (r"^encoder\.block\.(\d+)\.(\d+)\.", r"block\1.\2."),
    (r"^encoder\.layer_norm\.(\d+)\.", r"norm\1."),
    (r"^stages\.(\d+)\.patch_embeddings\.layer_norm\.", r"patch_embed\1.norm."),
    (r"^stages\.(\d+)\.patch_embeddings\.", r"patch_embed\1."),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.", r"block\1.\2."),
    (r"^stages\.(\d+)\.layer_norm\.", r"norm\1."),
    (r"\.sequence_reduction\.sequence_reduction\.", ".sr."),
    (r"\.sequence_reduction\.layer_norm\.", ".norm."),
    *_BLOCK,
    (r"\.attention\.(sr|layer_norm|norm)\.", r".attn.\1."),
    (r"\.attn\.layer_norm\.", ".attn.norm."),
)
_LAYER = r"^(encoder\.|model\.)?layers?\.\d+\.attention\."


def stages_from_one(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Count the stages of a MiT from 1, as its authors do."""

    def count(found):
        return f"{found[1]}{int(found[2]) + 1}."

    return {re.sub(r"^(patch_embed|block|norm)(\d)\.", count, k): v for k, v in state.items()}


def downsample_later(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Let a Swin merge patches at the beginning of a stage, as timm does, not at the end."""

    def count(found):
        return f"layers.{int(found[1]) + 1}.downsample."

    return {re.sub(r"^layers\.(\d+)\.downsample\.", count, k): v for k, v in state.items()}


FORMATS = (
    (
        "Hugging Face SegFormer",
        (r"^(encoder\.block|stages)\.\d+\.(blocks\.)?\d+\.attention\.",),
        _SEGFORMER,
        (stages_from_one,),
    ),
    (
        "Hugging Face Swin",
        (r"^encoder\.layers\.\d+\.blocks\.\d+\.attention\.",),
        _SWIN,
        (downsample_later,),
    ),
    ("Hugging Face BEiT", (_LAYER, r"\.lambda_1$"), _VIT),
    ("Hugging Face DINOv2 or DINOv3, gated", (_LAYER, r"\.gate_proj\."), (*_GATED, *_VIT)),
    ("Hugging Face DINOv2", (_LAYER, r"\.lambda1$", r"position_embeddings$"), _VIT),
    ("Hugging Face DINOv3", (_LAYER, r"\.lambda1$"), _VIT),
    ("Hugging Face ViT", (_LAYER,), _VIT),
)
