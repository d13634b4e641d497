"""Base weights: read from a file, brought to a backbone's own names, loaded by the stock code.

The rule: every frozen base weight must come from the file (:mod:`snella_seg.loading.completeness`).
"""

import pickle

import torch
from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from ..inject import adapter_keys, base_state, is_adapter_key
from .completeness import BaseFit, check_base, fit_base
from .errors import CheckpointError
from .names import to_own_names

_SCHEME = "snella-base:"


def init_base_weights(backbone: nn.Module) -> None:
    """Run a stock backbone's ``init_weights`` so that a pretrained load is complete or an error.

    The file may hold the bare backbone, a full segmentor (``backbone.*``) or timm's names; it is
    brought to the backbone's own names and then loaded by the stock code, which resizes position
    embeddings and bias tables.

    Args:
        backbone: a stock mmseg backbone; ``init_cfg`` says where its weights are.

    Raises:
        FileNotFoundError: when the file does not exist.
        CheckpointError: when frozen weights are missing from it or have other shapes.
    """
    init_cfg = backbone.init_cfg
    if getattr(backbone, "is_init", False):  # TIMMBackbone loads when it is built
        return
    if not (isinstance(init_cfg, dict) and "checkpoint" in init_cfg):
        print_log(
            f"The base {type(backbone).__name__} has no pretrained weights (init_cfg={init_cfg}): "
            "its frozen weights are RANDOM unless a checkpoint is loaded (load_from, resume). Set "
            "backbone.init_cfg=dict(type='Pretrained', checkpoint=...).",
            logger="current",
            level=30,
        )
        backbone.init_weights()
        return
    source = init_cfg["checkpoint"]
    state = _base_state(_read(source), backbone)

    def load_from_memory(filename, map_location):
        return dict(state_dict=state)

    def check(state_dict, prefix, *_):
        check_base(backbone, state_dict, prefix, source)

    ours = adapter_keys(backbone)

    def expect_no_adapters(_, incompatible):
        keys = incompatible.missing_keys
        keys[:] = [k for k in keys if k not in ours]

    CheckpointLoader.register_scheme(_SCHEME, load_from_memory, force=True)
    handles = [
        backbone._register_load_state_dict_pre_hook(check),
        backbone.register_load_state_dict_post_hook(expect_no_adapters),
    ]
    backbone.init_cfg = {**init_cfg, "checkpoint": _SCHEME + source}
    try:
        backbone.init_weights()
    finally:
        backbone.init_cfg = init_cfg
        for handle in handles:
            handle.remove()
        CheckpointLoader._schemes.pop(_SCHEME, None)


def _read(source: str) -> dict:
    try:
        return CheckpointLoader.load_checkpoint(source, map_location="cpu", logger=None)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"base weights not found: {source}; put the file there or set the checkpoint of "
            "model.backbone.backbone.init_cfg (or model.pretrained)"
        ) from None
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise CheckpointError(
            f"base weights cannot be read from {source}, the file is cut short or not from "
            f"torch.save ({str(error).splitlines()[0]}); get it anew"
        ) from None


def _base_state(checkpoint: dict, backbone: nn.Module) -> dict[str, Tensor]:
    """Reduce a checkpoint to the backbone's weights under the backbone's own names."""
    for key in ("state_dict", "model", "module"):
        if isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    state = {k.removeprefix("module."): v for k, v in checkpoint.items() if torch.is_tensor(v)}
    for prefix in ("backbone.backbone.", "backbone."):
        if any(k.startswith(prefix) for k in state):
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            break
    expected = base_state(backbone)
    state = {k: v for k, v in state.items() if k in expected or not is_adapter_key(k)}
    state = to_own_names(state, set(expected))
    return _fit_bands(_resize_timm_pos_embed(state, backbone), backbone)


def _fit_bands(state: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Start a trained first convolution for other bands from one of RGB images.

    Each band gets the mean of the three filters, scaled so that images whose bands are alike give
    the same maps. Frozen ones are left, and refused later: filters of bands that no pretraining saw
    have to be trained.
    """
    for name, parameter in backbone.named_parameters():
        found = state.get(name)
        if found is None or found.ndim != 4 or found.shape[1] != 3 or not parameter.requires_grad:
            continue
        bands = parameter.shape[1]
        if bands != 3 and found[:, :1].shape == parameter[:, :1].shape:
            state[name] = found.mean(1, keepdim=True).repeat(1, bands, 1, 1) * (3 / bands)
            print_log(f"{name} starts from the mean of 3 bands, in {bands} bands", "current")
    return state


def _resize_timm_pos_embed(state, backbone):
    """timm resizes position embeddings in its own loader only, so it is done here."""
    name = "timm_model.model.pos_embed"
    model = getattr(getattr(backbone, "timm_model", None), "model", None)
    if name in state and model is not None and state[name].shape != model.pos_embed.shape:
        from timm.layers import resample_abs_pos_embed

        prefix_tokens = 0 if model.no_embed_class else model.num_prefix_tokens
        state[name] = resample_abs_pos_embed(
            state[name], model.patch_embed.grid_size, num_prefix_tokens=prefix_tokens
        )
    return state


def fit_base_file(backbone: nn.Module) -> BaseFit | None:
    """Hold the file that a stock backbone's ``init_cfg`` names against its weights.

    Weights that the stock loader resizes count as misshapen here. None where no file is named.

    Raises:
        FileNotFoundError, CheckpointError: when the file cannot be read.
    """
    source = backbone.init_cfg.get("checkpoint") if isinstance(backbone.init_cfg, dict) else None
    if source is None:
        return None
    return fit_base(backbone, _base_state(_read(source), backbone))
