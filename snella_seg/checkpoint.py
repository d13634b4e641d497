"""Loading: base weights under stock names, whole checkpoints, and what is refused.

The rule: every frozen base weight must come from the checkpoint, and adapters come whole or not
at all. Anything else is an error that lists what is missing or does not fit.
"""

import pickle
from typing import NamedTuple

import torch
from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from .convert import is_timm_vit, timm_vit_to_mmseg, to_timm_backbone
from .inject import is_adapter_key

_SCHEME = "snella-base:"
_CLASSIFIER = ("head.", "fc.", "head_dist.", "fc_norm.", "pre_logits.")


class CheckpointError(RuntimeError):
    """A checkpoint that does not fit the model; nothing of it has been loaded into the base."""


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

    def expect_no_adapters(_, incompatible):
        keys = incompatible.missing_keys
        keys[:] = [k for k in keys if not is_adapter_key(k)]

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
    state = {k: v for k, v in state.items() if not is_adapter_key(k)}
    expected = set(backbone.state_dict())
    if any(k.startswith("timm_model.") for k in expected):
        return _resize_timm_pos_embed(to_timm_backbone(state, expected), backbone)
    if is_timm_vit(state) and "layers.0.attn.attn.in_proj_weight" in expected:
        return timm_vit_to_mmseg(state)
    return state


def _resize_timm_pos_embed(state, backbone):
    """timm resizes position embeddings in its own loader only, so it is done here."""
    name = "timm_model.model.pos_embed"
    model = getattr(backbone.timm_model, "model", None)
    if name in state and model is not None and state[name].shape != model.pos_embed.shape:
        from timm.layers import resample_abs_pos_embed

        prefix_tokens = 0 if model.no_embed_class else model.num_prefix_tokens
        state[name] = resample_abs_pos_embed(
            state[name], model.patch_embed.grid_size, num_prefix_tokens=prefix_tokens
        )
    return state


def check_base(backbone: nn.Module, state: dict[str, Tensor], prefix: str, source: str) -> None:
    """Refuse a state that leaves a frozen weight of the base unset.

    Missing weights that are trained, and index buffers that are computed, are let pass.

    Args:
        backbone: the (adapted) stock backbone.
        state: what is about to be loaded.
        prefix: how the backbone's names begin in it.
        source: what to call it in messages.
    """
    fit, kind = fit_base(backbone, state, prefix), type(backbone).__name__
    if fit.missing:
        raise CheckpointError(
            f"incomplete load of the frozen {kind} from {source}: {len(fit.missing)} of "
            f"{fit.expected} weights are missing: {some(fit.missing)}. Give a checkpoint that has "
            f"them, or list them in trainable=[...] if they are to be trained from scratch"
        )
    if fit.misshapen:
        raise CheckpointError(
            f"weights of {source} do not fit this {kind}: {some(fit.misshapen)}. "
            "Use the checkpoint of this architecture"
        )
    if fit.fresh:
        print_log(f"Not in {source}, trained from scratch: {some(fit.fresh)}", "current")
    if fit.unused:
        bias = "patch_embed.projection.bias" in fit.unused
        print_log(
            f"{source} holds {len(fit.unused)} weights that this {kind} has no place for: "
            f"{some(fit.unused)}" + (" (patch_bias=True takes it in)" if bias else ""),
            logger="current",
            level=30,
        )


class BaseFit(NamedTuple):
    """How a file's weights fit a base: numbers and names, as the backbone has them.

    ``expected`` weights are in the backbone; ``missing`` are frozen ones that the file lacks,
    ``fresh`` trained ones, ``misshapen`` have other shapes there ('name shape instead of shape'),
    ``unused`` are in the file only.
    """

    expected: int
    missing: list[str]
    misshapen: list[str]
    fresh: list[str]
    unused: list[str]


def fit_base(backbone: nn.Module, state: dict[str, Tensor], prefix: str = "") -> BaseFit:
    """Hold a state against a backbone's own weights. Arguments as of :func:`check_base`."""
    trained = {n for n, p in backbone.named_parameters() if p.requires_grad}
    missing, misshapen, fresh = [], [], []
    expected = {k: v for k, v in backbone.state_dict().items() if not is_adapter_key(k)}
    for name, value in expected.items():
        found = state.get(prefix + name)
        if found is not None and found.shape != value.shape:
            shapes = f"{tuple(found.shape)} instead of {tuple(value.shape)}"
            misshapen.append(f"{name} {shapes}")
        elif found is None and name in trained:
            fresh.append(name)
        elif found is None and value.is_floating_point():
            missing.append(name)
    unused = [
        k.removeprefix(prefix)
        for k in state
        if k.startswith(prefix) and k.removeprefix(prefix) not in expected
    ]
    unused = [k for k in unused if not k.startswith(_CLASSIFIER) and not is_adapter_key(k)]
    return BaseFit(len(expected), missing, misshapen, fresh, unused)


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


def check_adapters(backbone: nn.Module, state: dict[str, Tensor], prefix: str) -> None:
    """Refuse adapters that are incomplete, of other shapes, or not finite.

    A state without any adapter is a stock checkpoint and leaves the adapters at their start.
    """
    expected = {k: v for k, v in backbone.state_dict().items() if is_adapter_key(k)}
    given = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    given = {k: v for k, v in given.items() if is_adapter_key(k)}
    if not given:
        if expected:
            print_log(
                "The checkpoint holds no SNELLA adapters: they keep their initial values",
                logger="current",
                level=30,
            )
        return
    for what, names in (
        ("misses adapter values", [k for k in expected if k not in given]),
        ("holds adapters that this model lacks", [k for k in given if k not in expected]),
    ):
        if names:
            raise CheckpointError(
                f"the checkpoint {what}: {some(names)}. Use the targets, rank and kernel that it "
                "was trained with"
            )
    misshapen = [
        f"{k} {tuple(v.shape)} instead of {tuple(expected[k].shape)}"
        for k, v in given.items()
        if v.shape != expected[k].shape
    ]
    if misshapen:
        raise CheckpointError(
            f"adapters of the checkpoint do not fit this model: {some(misshapen)}. Use the rank, "
            "heads and backbone that it was trained with"
        )
    broken = [k for k, v in given.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"the checkpoint holds NaN or infinite adapter values: {some(broken)}. Training had "
            "diverged: use an earlier checkpoint"
        )


def some(names: list[str], limit: int = 6) -> str:
    """The first names of a list, for a message."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
