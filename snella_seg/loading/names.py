"""Names of pretrained weights: between timm's models and mmsegmentation's.

timm's names are the common ones, to which every layout is brought
(:mod:`snella_seg.loading.formats`); the few models that timm lacks have those of their authors.
"""

import re

from torch import Tensor

from ..inject import FAMILIES
from ..inject.families import Family
from ..inject.freeze import is_output_norm

_AS_IS = ("cls_token", "pos_embed")
_HEAD = ("head.", "head_dist.", "fc_norm.", "pre_logits.", "attn_pool.")


def to_own_names(state_dict: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """Bring weights under timm's names to those of a backbone, where it has others.

    Args:
        state_dict: weights of a bare backbone, under timm's names or the backbone's own.
        expected: the backbone's own names.

    Returns:
        A new dict, or the same one where no family tells other names.

    Raises:
        ValueError: when weights have no counterpart in the backbone, such as LayerScale (``ls1``).
    """
    if any(name.startswith("timm_model.") for name in expected):
        return to_timm_backbone(state_dict, expected)
    for name, family in FAMILIES.items():
        if family.timm_mark in state_dict and family.mark in expected:
            return from_timm(state_dict, name, family)
    return state_dict


def from_timm(state_dict: dict[str, Tensor], name: str, family: Family) -> dict[str, Tensor]:
    """Rename timm's weights of an architecture to those of its family here.

    Values are passed on as they are (position embeddings are resized when they are loaded). The
    classification head is left out. timm's patch embedding has a bias: mmseg's ViT takes it with
    ``patch_bias=True``.

    Raises:
        ValueError: when some have no counterpart, such as LayerScale or separate q and k norms.
    """
    kept = {key: value for key, value in state_dict.items() if not key.startswith(_HEAD)}
    converted, unknown = _rename_all(_own_values(kept), family.timm_names)
    if unknown:
        raise ValueError(
            f"{len(unknown)} weights have no counterpart in {name}: {', '.join(unknown[:6])}; use "
            "TIMMBackbone for this model"
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
    for kind in ("ViT", "Swin"):
        family = FAMILIES[f"mmseg {kind}"]
        if family.mark in state_dict:
            names = _inverted(family)
            return _all_known(*_rename_all(_common_values(state_dict), names), kind)
    if any(name.startswith("timm_model.") for name in state_dict):
        return common_names(state_dict)
    raise ValueError(
        "timm names are known for mmseg's VisionTransformer and SwinTransformer and for "
        f"TIMMBackbone; names begin with {', '.join(list(state_dict)[:3]) or 'nothing'}"
    )


def common_names(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring weights of any known backbone of mmseg to the common names.

    What has no counterpart keeps its name, but for output norms, which are left out with computed
    index buffers; so do all weights of a backbone of no family.
    """
    if any(name.startswith("timm_model.") for name in state_dict):
        return {_from_timm_backbone(name): value for name, value in state_dict.items()}
    for family in FAMILIES.values():
        if family.timm_names and family.mark in state_dict:
            values = _common_values(state_dict)
            converted, unknown = _rename_all(values, _inverted(family))
            return {**converted, **{name: values[name] for name in unknown}}
    return dict(state_dict)


def _inverted(family: Family) -> list[tuple[str, str]]:
    return [(own, timm) for timm, own in family.timm_names]


def _from_timm_backbone(name: str) -> str:
    name = name.removeprefix("timm_model.").removeprefix("model.")
    return re.sub(r"^(layers|blocks|stages)_(\d+)\.", r"\1.\2.", name)


_MIT_MLP = re.compile(r"^layers\.\d\.1\.\d+\.ffn\.layers\.[04]\.weight$")
_COMMON_MIT_MLP = re.compile(r"^block\d\.\d+\.mlp\.fc\d\.weight$")


def _common_values(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values of mmseg's backbones as timm has them, still under mmseg's names.

    mmseg's Swin unfolds 2x2 patches as (channel, row, column), timm as (column, row, channel), and
    timm merges them at the beginning of a stage. mmseg's MiT has convolutions in its MLPs.
    """
    common = {}
    for name, value in state_dict.items():
        if is_output_norm(name) or name.endswith("relative_position_index"):
            continue
        merging = re.match(r"stages\.(\d+)\.downsample\.", name)
        if merging:
            value = value.unflatten(-1, (-1, 2, 2)).transpose(-3, -1).flatten(-3)
            name = f"stages.{int(merging[1]) + 1}.downsample.{name[merging.end() :]}"
        elif _MIT_MLP.match(name):
            value = value.flatten(1)
        common[name] = value
    return common


def _own_values(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo :func:`_common_values`, under the common names."""
    own = {}
    for name, value in state_dict.items():
        merging = re.match(r"layers\.(\d+)\.downsample\.", name)
        if merging:
            value = value.unflatten(-1, (2, 2, -1)).transpose(-3, -1).flatten(-3)
            name = f"layers.{int(merging[1]) - 1}.downsample.{name[merging.end() :]}"
        elif _COMMON_MIT_MLP.match(name):
            value = value[:, :, None, None]
        own[name] = value
    return own


def _all_known(converted: dict[str, Tensor], unknown: list[str], kind: str) -> dict[str, Tensor]:
    if unknown:
        raise ValueError(f"no counterpart in timm's {kind}: {', '.join(unknown[:6])}")
    return converted
