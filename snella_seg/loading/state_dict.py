"""What a SnellaBackbone does with a state dict before it is loaded, and how its base gets weights.

It takes in stock names and slim checkpoints, and refuses what is incomplete or does not fit.
"""

from typing import TYPE_CHECKING

import torch
from mmengine.logging import print_log
from torch import Tensor

from ..inject import adapters_disabled
from .base_weights import init_base_weights
from .completeness import check_adapters, check_base
from .errors import CheckpointError
from .header import (
    HEADER,
    check_adapter_options,
    check_version,
    compare_base,
    decode_header,
    frozen_state,
)

if TYPE_CHECKING:
    from ..models import SnellaBackbone


def load_base(wrapper: "SnellaBackbone") -> None:
    """Load or draw the base weights as the stock backbone does; adapters are not touched.

    Raises:
        FileNotFoundError, CheckpointError: as :func:`init_base_weights`.
    """
    loaded = getattr(wrapper.backbone, "is_init", False)  # by timm, when it was built
    with adapters_disabled(wrapper.backbone):
        init_base_weights(wrapper.backbone, wrapper.bands)
    if not loaded and wrapper.named_source is not None:
        wrapper.base_source, wrapper.base_is_loaded = wrapper.named_source, True


def take_in(wrapper: "SnellaBackbone", state_dict: dict[str, Tensor], prefix: str) -> None:
    """Make a state dict one that a SnellaBackbone loads, in place.

    A bare or stock backbone's names get the wrapper's; a slim checkpoint is completed by the
    wrapper's own base, which is loaded for that where it is not there yet.

    Args:
        wrapper: that is about to load it.
        state_dict: of the whole model.
        prefix: how the wrapper's names begin in it.

    Raises:
        CheckpointError: when it lacks frozen weights or holds what does not fit; when its adapters
            compute otherwise, or were trained on another base.
        FileNotFoundError: when the base is left out and its file is not found.
    """
    inner = f"{prefix}backbone."
    header = state_dict.pop(prefix + HEADER, None)
    if not any(key.startswith(inner) for key in state_dict):
        for key in [k for k in state_dict if k.startswith(prefix)]:
            state_dict[inner + key.removeprefix(prefix)] = state_dict.pop(key)
    whole = any(inner + name in state_dict for name in frozen_state(wrapper))
    if header is not None:
        header = decode_header(header)
        check_version(header["version"], "the checkpoint's SNELLA header")
        check_adapter_options(wrapper, header)
    if header is not None and not whole:
        _add_base(wrapper, state_dict, inner, header)
    check_base(wrapper.backbone, state_dict, inner, "the checkpoint")
    check_adapters(wrapper.backbone, state_dict, inner)
    if whole:
        _follow_base(wrapper, state_dict, inner)


def _add_base(
    wrapper: "SnellaBackbone", state_dict: dict[str, Tensor], inner: str, header: dict
) -> None:
    """Complete the state of a slim checkpoint by this model's own base."""
    if not wrapper.base_is_loaded:
        _find_base(wrapper, header["base"].get("source"))
    problem = compare_base(wrapper, header)
    if problem and wrapper.check_base:
        raise CheckpointError(
            f"{problem}. Set model.backbone.base_checkpoint to the base that they were trained "
            "on, or model.backbone.check_base=False to load them all the same"
        )
    if problem:
        print_log(f"{problem}; loaded all the same (check_base=False)", "current", level=30)
    for name, value in frozen_state(wrapper).items():
        state_dict[inner + name] = value


def _find_base(wrapper: "SnellaBackbone", recorded: str | None) -> None:
    """Load the base from where the config says, or else from where it was in training."""
    if wrapper.named_source is None:
        if recorded is None:
            raise CheckpointError(
                "the checkpoint leaves out the frozen base and the config does not name its file; "
                "set model.backbone.base_checkpoint"
            )
        if "://" in recorded:
            raise CheckpointError(
                f"the checkpoint says that its base is at {recorded}; if you trust that, give it "
                "as model.backbone.base_checkpoint"
            )
        wrapper.backbone.init_cfg = dict(type="Pretrained", checkpoint=recorded)
    try:
        load_base(wrapper)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the checkpoint leaves out the frozen base. {error}, or set "
            "model.backbone.base_checkpoint"
        ) from None


def _follow_base(wrapper: "SnellaBackbone", state_dict: dict[str, Tensor], inner: str) -> None:
    """Forget the base's file when weights of another base are about to be loaded."""
    wrapper.base_is_loaded = True
    for name, value in frozen_state(wrapper).items():
        given = state_dict.get(inner + name)
        if given is not None and not torch.equal(given.to(value.device), value):
            wrapper.base_source = None
