"""Names of pretrained weights: between timm's models and mmsegmentation's."""

import re

from torch import Tensor

# timm name, mmseg name: how they begin, {} a number. The first that fits is applied.
_VIT_NAMES = (
    ("patch_embed.proj.", "patch_embed.projection."),
    ("norm_pre.", "ln_pre."),
    ("norm.", "ln1."),
    ("blocks.{}.norm{}.", "layers.{}.ln{}."),
    ("blocks.{}.attn.qkv.", "layers.{}.attn.attn.in_proj_"),
    ("blocks.{}.attn.proj.", "layers.{}.attn.attn.out_proj."),
    ("blocks.{}.mlp.fc1.", "layers.{}.ffn.layers.0.0."),
    ("blocks.{}.mlp.fc2.", "layers.{}.ffn.layers.1."),
)
_SWIN_NAMES = (
    ("patch_embed.proj.", "patch_embed.projection."),
    ("patch_embed.norm.", "patch_embed.norm."),
    ("layers.{}.blocks.{}.norm{}.", "stages.{}.blocks.{}.norm{}."),
    ("layers.{}.blocks.{}.attn.", "stages.{}.blocks.{}.attn.w_msa."),
    ("layers.{}.blocks.{}.mlp.fc1.", "stages.{}.blocks.{}.ffn.layers.0.0."),
    ("layers.{}.blocks.{}.mlp.fc2.", "stages.{}.blocks.{}.ffn.layers.1."),
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
    kept = {name: value for name, value in state_dict.items() if not name.startswith(_HEAD)}
    converted, unknown = _rename_all(kept, _VIT_NAMES)
    if unknown:
        raise ValueError(
            f"{len(unknown)} weights have no counterpart in mmseg's VisionTransformer: "
            f"{', '.join(unknown[:6])}; use TIMMBackbone for this model"
        )
    return converted


def _rename_all(state_dict: dict[str, Tensor], names) -> tuple[dict[str, Tensor], list[str]]:
    """Rename by pairs of beginnings; return what has a counterpart, and names that have none."""
    converted, unknown = {}, []
    for name, value in state_dict.items():
        new_name = name if name in _AS_IS else _renamed(name, names)
        if new_name is None:
            unknown.append(name)
        else:
            converted[new_name] = value
    return converted, unknown


def _renamed(name: str, names) -> str | None:
    for old, new in names:
        found = re.match(re.escape(old).replace(r"\{\}", r"(\d+)"), name)
        if found:
            return new.format(*found.groups()) + name[found.end() :]
    return None


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


def mmseg_to_timm(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of an mmseg backbone to those of timm's model of the same architecture.

    Args:
        state_dict: of mmseg's VisionTransformer or SwinTransformer, or of TIMMBackbone. The output
            norms that mmseg's Swin adds have no counterpart and are left out, as are computed
            index buffers. (timm's Swin has a last norm and a classifier that mmseg's lacks.)

    Returns:
        A new dict with timm names.

    Raises:
        ValueError: on another architecture, or weights without a counterpart.
    """
    if any(name.startswith("timm_model.") for name in state_dict):
        return {_from_timm_backbone(name): value for name, value in state_dict.items()}
    if "layers.0.attn.attn.in_proj_weight" in state_dict:
        to_timm = [(mmseg, timm) for timm, mmseg in _VIT_NAMES]
        return _all_known(*_rename_all(state_dict, to_timm), "ViT")
    if "stages.0.blocks.0.attn.w_msa.qkv.weight" in state_dict:
        return _swin_to_timm(state_dict)
    raise ValueError(
        "timm names are known for mmseg's VisionTransformer and SwinTransformer and for "
        f"TIMMBackbone; names begin with {', '.join(list(state_dict)[:3]) or 'nothing'}"
    )


def _from_timm_backbone(name: str) -> str:
    name = name.removeprefix("timm_model.").removeprefix("model.")
    return re.sub(r"^(layers|blocks|stages)_(\d+)\.", r"\1.\2.", name)


def _swin_to_timm(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    kept = {}
    for name, value in state_dict.items():
        if re.match(r"norm\d\.", name) or name.endswith("relative_position_index"):
            continue
        merging = re.match(r"stages\.(\d+)\.downsample\.", name)
        if merging:
            # mmseg unfolds 2x2 patches as (channel, row, column), timm as (column, row, channel);
            # timm merges at the beginning of a stage.
            value = value.unflatten(-1, (-1, 2, 2)).transpose(-3, -1).flatten(-3)
            name = f"layers.{int(merging[1]) + 1}.downsample.{name[merging.end() :]}"
        kept[name] = value
    to_timm = [(mmseg, timm) for timm, mmseg in _SWIN_NAMES]
    converted, unknown = _rename_all(kept, [*to_timm, ("layers.{}.", "layers.{}.")])
    return _all_known(converted, unknown, "Swin")


def _all_known(converted: dict[str, Tensor], unknown: list[str], kind: str) -> dict[str, Tensor]:
    if unknown:
        raise ValueError(f"no counterpart in timm's {kind}: {', '.join(unknown[:6])}")
    return converted
