"""LinearHead as a stock head: its batch norm goes into the convolution behind it."""

import torch
from torch import Tensor, nn

from ..configs import type_name
from ..models import LinearHead

FOLDABLE = ("BN", "BN2d", "SyncBN")


def stock_linear_head(head: dict) -> dict:
    """Config of mmseg's FCNHead that computes, in evaluation, what a LinearHead's config does.

    Args:
        head: config of a :class:`snella_seg.models.LinearHead`.

    Returns:
        A config for the state that :func:`fold_linear_heads` makes.

    Raises:
        ValueError: when its norm is no affine batch norm with running statistics.
    """
    norm = head.get("norm_cfg") or dict(type="BN")
    fixed = norm.get("affine", True) and norm.get("track_running_stats", True)
    if type_name(norm) not in FOLDABLE or not fixed:
        raise ValueError(
            f"no stock head computes what LinearHead with norm_cfg={dict(norm)} does: a batch norm "
            "becomes part of its convolution, other norms cannot. Write the bare backbone "
            "(--backbone)"
        )
    channels = head["in_channels"]
    several = not isinstance(channels, int)
    stock = {key: value for key, value in head.items() if key != "norm_cfg"}
    stock.update(type="FCNHead", num_convs=0, kernel_size=1, concat_input=False)
    stock.update(channels=sum(channels) if several else channels)
    stock.setdefault("dropout_ratio", 0.0)
    if several:
        stock.update(input_transform="resize_concat")
    return stock


def fold_linear_heads(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """State of a segmentor whose LinearHeads are those of :func:`stock_linear_head`.

    Args:
        state: of the segmentor, or of its heads.
        model: it, which tells where LinearHeads are.

    Returns:
        The same tensors, but for the batch norms, ``y = g (x - m) / s + b``, whose factors
        ``g / s`` are in the weights (classes, channels, 1, 1) of the convolutions behind them and
        whose offsets are in the biases (classes,), by double precision.
    """
    state = dict(state)
    for name, head in model.named_modules():
        if not isinstance(head, LinearHead):
            continue
        norm, conv = f"{name}.norm.", f"{name}.conv_seg."
        taken = {key: state.pop(key) for key in list(state) if key.startswith(norm)}
        gain, offset, mean, variance = (
            taken[norm + part].double()
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = gain * (variance + head.norm.eps).rsqrt()
        weight = state[conv + "weight"].double()
        constant = torch.einsum("oi...,i->o", weight, offset - mean * factor)
        for key, value in (
            (conv + "weight", weight * factor[:, None, None]),
            (conv + "bias", state[conv + "bias"].double() + constant),
        ):
            state[key] = value.to(state[key].dtype)
    return state
