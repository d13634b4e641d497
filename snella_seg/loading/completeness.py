"""What of a backbone's state a file must hold, and what is refused.

Every frozen base weight must be there, and adapters come whole or not at all. Anything else is an
error that lists what is missing or does not fit.
"""

from typing import NamedTuple

from mmengine.logging import print_log
from torch import Tensor, nn

from ..inject import adapter_keys, base_state, is_adapter_key
from .errors import CheckpointError, some

_CLASSIFIER = ("head.", "fc.", "head_dist.", "fc_norm.", "pre_logits.")


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
            + _bands_hint(backbone, state, prefix)
        )
    if fit.fresh:
        print_log(f"Not in {source}, trained from scratch: {some(fit.fresh)}", "current", level=30)
    if fit.neutral:
        print_log(
            f"Not in {source}, frozen where they change nothing (scales of 1, biases of 0): "
            f"{some(fit.neutral)}",
            "current",
        )
    if fit.unused:
        bias = "patch_embed.projection.bias" in fit.unused
        print_log(
            f"{source} holds {len(fit.unused)} weights that this {kind} has no place for: "
            f"{some(fit.unused)}" + (" (patch_bias=True takes it in)" if bias else ""),
            logger="current",
            level=30,
        )


def _bands_hint(backbone: nn.Module, state: dict[str, Tensor], prefix: str) -> str:
    """What to do about weights of other shapes: other bands are a case of their own."""
    for name, value in base_state(backbone).items():
        found = state.get(prefix + name)
        if found is None or found.ndim != 4 or value.ndim != 4 or found.shape == value.shape:
            continue
        if found[:, :1].shape == value[:, :1].shape:
            module = name.split(".")[0]
            return (
                f"They are for {found.shape[1]} bands, not {value.shape[1]}: set bands='mean' of "
                f"SnellaBackbone (or 'copy', 'random'), and {module} starts from these and is "
                "trained as well"
            )
    return "Use the checkpoint of this architecture"


class BaseFit(NamedTuple):
    """How a file's weights fit a base: numbers and names, as the backbone has them.

    ``expected`` weights are in the backbone; ``missing`` are frozen ones that the file lacks,
    ``neutral`` those among them that compute nothing as they are, so that the backbone is the
    file's model all the same, ``fresh`` trained ones, ``misshapen`` have other shapes there ('name
    shape instead of shape'), ``unused`` are in the file only.
    """

    expected: int
    missing: list[str]
    misshapen: list[str]
    fresh: list[str]
    unused: list[str]
    neutral: list[str] = []


def fit_base(backbone: nn.Module, state: dict[str, Tensor], prefix: str = "") -> BaseFit:
    """Hold a state against a backbone's own weights. Arguments as of :func:`check_base`."""
    trained = {n for n, p in backbone.named_parameters() if p.requires_grad}
    missing, misshapen, fresh, neutral = [], [], [], []
    expected = base_state(backbone)
    for name, value in expected.items():
        found = state.get(prefix + name)
        if found is not None and found.shape != value.shape:
            shapes = f"{tuple(found.shape)} instead of {tuple(value.shape)}"
            misshapen.append(f"{name} {shapes}")
        elif found is None and name in trained:
            fresh.append(name)
        elif found is None and _is_neutral(name, value):
            neutral.append(name)
        elif found is None and value.is_floating_point():
            missing.append(name)
    unused = [
        k.removeprefix(prefix)
        for k in state
        if k.startswith(prefix) and k.removeprefix(prefix) not in expected
    ]
    unused = [k for k in unused if not k.startswith(_CLASSIFIER) and not is_adapter_key(k)]
    return BaseFit(len(expected), missing, misshapen, fresh, unused, neutral)


def _is_neutral(name: str, value: Tensor) -> bool:
    """Whether a weight computes nothing: a scale of 1, a position bias of 0."""
    part = name.rpartition(".")[2]
    if part in ("gamma", "gamma_1", "gamma_2"):
        return bool((value == 1).all())
    return part == "relative_position_bias_table" and not value.any()


def check_adapters(backbone: nn.Module, state: dict[str, Tensor], prefix: str) -> None:
    """Refuse adapters that are incomplete, of other shapes, or not finite.

    A state without any adapter is a stock checkpoint and leaves the adapters at their start.
    """
    own, ours = backbone.state_dict(), adapter_keys(backbone)
    expected = {name: own[name] for name in own if name in ours}
    given = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    given = {k: v for k, v in given.items() if k in ours or (k not in own and is_adapter_key(k))}
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
