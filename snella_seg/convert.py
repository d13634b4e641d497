"""Names of pretrained weights: from timm's ViT to mmsegmentation's VisionTransformer."""

import re

from torch import Tensor

# timm name -> mmseg name, in this order; the first that matches is applied.
_VIT_RULES = (
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"^norm_pre\.", "ln_pre."),
    (r"^norm\.", "ln1."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"layers.\1.ln\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"layers.\1.attn.attn.in_proj_"),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"layers.\1.attn.attn.out_proj."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"layers.\1.ffn.layers.0.0."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"layers.\1.ffn.layers.1."),
)
_AS_IS = ("cls_token", "pos_embed")
_HEAD = ("head.", "head_dist.", "fc_norm.", "pre_logits.", "attn_pool.")


def is_timm_vit(state_dict: dict[str, Tensor]) -> bool:
    """Whether the names are those of a timm VisionTransformer."""
    return "blocks.0.attn.qkv.weight" in state_dict and "patch_embed.proj.weight" in state_dict


def timm_vit_to_mmseg(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a timm ViT to those of mmseg's VisionTransformer.

    Values are passed on as they are (position embeddings are resized when they are loaded). The
    classification head is left out. timm's patch embedding has a bias: the mmseg model takes it
    with ``patch_bias=True``.

    Args:
        state_dict: timm names, with a plain (unscaled, not gated) block layout.

    Returns:
        A new dict with mmseg names.

    Raises:
        ValueError: when these are not the names of a timm ViT, or some have no counterpart, such
            as LayerScale (``ls1``) or separate q and k norms.
    """
    if not is_timm_vit(state_dict):
        raise ValueError(
            "these are not the weights of a timm ViT (no blocks.0.attn.qkv.weight); names begin "
            f"with {', '.join(list(state_dict)[:3]) or 'nothing'}"
        )
    converted, unknown = {}, []
    for name, value in state_dict.items():
        if name.startswith(_HEAD):
            continue
        for pattern, replacement in _VIT_RULES:
            new_name, count = re.subn(pattern, replacement, name)
            if count:
                converted[new_name] = value
                break
        else:
            if name in _AS_IS:
                converted[name] = value
            else:
                unknown.append(name)
    if unknown:
        raise ValueError(
            f"{len(unknown)} weights have no counterpart in mmseg's VisionTransformer: "
            f"{', '.join(unknown[:6])}; use TIMMBackbone for this model"
        )
    return converted


def to_timm_backbone(state_dict: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """Rename weights of a timm model to those it has within mmseg's TIMMBackbone.

    Args:
        state_dict: the model's own names, as timm publishes them.
        expected: the names of the TIMMBackbone, such as ``timm_model.model.blocks.0...`` (ViT) or
            ``timm_model.layers_0.blocks...`` (Swin).

    Returns:
        A new dict; names without a counterpart keep theirs.
    """
    renamed = {}
    for name, value in state_dict.items():
        joined = re.sub(r"^([a-z_]+)\.(\d+)\.", r"\1_\2.", name)
        choices = (f"timm_model.model.{name}", f"timm_model.{name}", f"timm_model.{joined}", name)
        renamed[next((c for c in choices if c in expected), name)] = value
    return renamed
