"""Position embeddings, tables of position biases and first filters for other sizes and bands.

mmseg's backbones resize what they load themselves and timm's in their own loader only. What the
stock code leaves undone is done here by timm's functions.
"""

import math
import sys

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

TABLE = "relative_position_bias_table"
#: How filters for other bands start from those for red, green and blue.
BAND_RULES = ("mean", "copy", "random")


def fit_positions(state: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Let position embeddings have the class and register tokens that a backbone's have.

    Args:
        state: by timm's names. The file's patches are on a square.
        backbone: whose ``pos_embed`` counts.
    """
    positions, own = state.get("pos_embed"), _prefix_tokens(backbone)
    if positions is None or positions.ndim != 3 or own is None:
        return state
    found = next((n for n in range(3) if _is_square(positions.shape[1] - n)), own)
    state = dict(state)
    if found == 1 and own == 0 and "cls_token" in state:
        state["cls_token"] = state["cls_token"] + positions[:, :1]
        state["pos_embed"] = positions[:, 1:]
    elif found == 0 and own == 1:
        nothing = torch.zeros_like(positions[:, :1])
        state["pos_embed"] = torch.cat([nothing, positions], 1)
    elif found == 2 and own == 1:  # DeiT's distillation token has the second
        state["pos_embed"] = torch.cat([positions[:, :1], positions[:, 2:]], 1)
    return state


def _prefix_tokens(backbone: nn.Module) -> int | None:
    """How many positions a backbone's embedding has before those of patches; None without one."""
    model = _timm_model(backbone)
    if getattr(model, "pos_embed", None) is None:
        return None
    if model is backbone:
        return 1
    return 0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 1)


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def _timm_model(backbone: nn.Module) -> nn.Module:
    """The model in a TIMMBackbone, or the backbone itself."""
    inner = getattr(backbone, "timm_model", None)
    return backbone if inner is None else getattr(inner, "model", inner)


def filter_by_timm(state: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Weights of a layout that only timm's own loader of a model knows, such as CLIP's."""
    model = _timm_model(backbone)
    load = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if model is backbone or load is None or any(name in model.state_dict() for name in state):
        return state
    try:
        return load(dict(state), model)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return state  # not of this model: what is missing is told of later


def resize(state: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Resize what the stock code of a backbone does not.

    Args:
        state: by the backbone's own names.
    """
    own, resized = backbone.state_dict(), dict(state)
    for name, value in state.items():
        if name not in own or own[name].shape == value.shape:
            continue
        if name.endswith("." + TABLE):
            resized[name] = _resize_table(value, own[name], backbone.get_submodule(name[:-29]))
        elif hasattr(backbone, "timm_model"):
            resized[name] = _resize_for_timm(name, value, own[name], _timm_model(backbone))
    return resized


def _resize_table(value: Tensor, own: Tensor, attention: nn.Module) -> Tensor:
    """A table for other windows; mmseg's Swin does that itself, with another interpolation."""
    from timm.layers import resize_rel_pos_bias_table

    window = attention.window_size
    if value.shape[-1] != own.shape[-1] or type(attention).__name__.endswith("WindowMSA"):
        return value
    return resize_rel_pos_bias_table(value, new_window_size=window, new_bias_shape=own.shape)


def _resize_for_timm(name: str, value: Tensor, own: Tensor, model: nn.Module) -> Tensor:
    from timm.layers import resample_abs_pos_embed, resample_patch_embed

    if name.endswith("pos_embed") and value.ndim == 3 and value.shape[-1] == own.shape[-1]:
        prefix_tokens = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens
        grid = model.patch_embed.grid_size
        return resample_abs_pos_embed(value, grid, num_prefix_tokens=prefix_tokens)
    if name.endswith("patch_embed.proj.weight") and value.shape[:2] == own.shape[:2]:
        return resample_patch_embed(value, list(own.shape[2:]))
    return value


def fit_bands(
    state: dict[str, Tensor], backbone: nn.Module, rule: str = "mean"
) -> dict[str, Tensor]:
    """Start a trained first convolution for other bands from one of RGB images.

    Frozen ones are left, and refused later: filters of bands that no pretraining saw have to be
    trained.

    Args:
        state: by the backbone's own names.
        rule: ``'mean'``: each band gets the mean of the three filters; ``'copy'``: the filters of
            red, green, blue, red ... as they come. Both are scaled by 3 / bands, so that images
            whose bands are alike give the same maps (with ``'copy'``, for multiples of three).
            ``'random'``: the filters are drawn anew.
    """
    state = dict(state)
    for name, parameter in backbone.named_parameters():
        found = state.get(name)
        if found is None or found.ndim != 4 or found.shape[1] != 3 or not parameter.requires_grad:
            continue
        bands = parameter.shape[1]
        if bands == 3 or found[:, :1].shape != parameter[:, :1].shape:
            continue
        if rule == "random":
            del state[name]
        elif rule == "copy":
            state[name] = found[:, torch.arange(bands) % 3] * (3 / bands)
        else:
            state[name] = found.mean(1, keepdim=True).repeat(1, bands, 1, 1) * (3 / bands)
        start = {"mean": "the mean of 3 bands", "copy": "copies of 3 bands", "random": "nothing"}
        print_log(f"{name} starts from {start[rule]}, in {bands} bands", "current")
    return state
