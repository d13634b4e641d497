"""How a task's adapters and their frozen base know each other.

Slim checkpoints and adapter files hold a task's part only. With it goes a header, a JSON text that
travels in the state dict as bytes, which says how the adapters compute and names the base by a
digest of each of its weights.
"""

import hashlib
import json
import math

import torch
from torch import Tensor, nn

from .checkpoint import CheckpointError, some
from .inject import is_adapter_key, list_adapters

#: Name of the header in a state dict, after the prefix of the wrapped backbone.
HEADER = "snella_header"
FORMAT_VERSION = 1
#: Options of an adapter that decide what its values mean.
DECISIVE = ("rank", "heads", "kernel", "sparsifier", "scale")
#: Options of an inner backbone that may differ: where its weights are, and how it trains.
_FREE = (
    "init_cfg",
    "pretrained",
    "checkpoint_path",
    "with_cp",
    "frozen_stages",
    "norm_eval",
    "drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
)
_RUNNING = ("running_mean", "running_var", "num_batches_tracked")
# Tables that are resized when they are loaded; machines may differ in the last digits of that.
_RESIZED = ("pos_embed", "relative_position_bias_table")


def frozen_state(wrapper: nn.Module) -> dict[str, Tensor]:
    """The frozen base of a SnellaBackbone: all that its training leaves as it was.

    Args:
        wrapper: the SnellaBackbone.

    Returns:
        Names as of the stock backbone -> weights and computed buffers. Adapters, base parameters
        that are trained, and running statistics are left out.
    """
    return {
        name: value
        for name, value in wrapper.backbone.state_dict().items()
        if not is_adapter_key(name)
        and name not in wrapper.trained_base
        and not name.endswith(_RUNNING)
    }


def fingerprint(state: dict[str, Tensor]) -> dict[str, str]:
    """Digest of every floating-point tensor of a state: its shape and values, not its dtype.

    Values count as float32 (float64 as themselves), so a file in half precision and the model that
    was loaded from it have the same digests.

    Returns:
        Name -> 16 hexadecimal digits.
    """
    return {name: _digest(value) for name, value in state.items() if value.is_floating_point()}


def _digest(value: Tensor) -> str:
    value = value.detach().cpu()
    value = (value if value.dtype == torch.float64 else value.float()).contiguous()
    found = hashlib.sha256(repr((tuple(value.shape), str(value.dtype))).encode())
    found.update(value.numpy().data if value.numel() else b"")
    return found.hexdigest()[:16]


def make_header(wrapper: nn.Module) -> dict:
    """The header of a SnellaBackbone's task: its adapters' options and its base."""
    frozen = frozen_state(wrapper)
    resized = {n: v for n, v in frozen.items() if n.endswith(_RESIZED)}
    return {
        "version": FORMAT_VERSION,
        "adapter": adapter_options(wrapper),
        "backbone": wrapper.inner_config,
        "base": {
            "source": wrapper.base_source or wrapper.named_source,
            "weights": fingerprint(frozen),
            "norms": {name: _norm(value) for name, value in resized.items()},
        },
    }


def adapter_options(wrapper: nn.Module) -> dict:
    """The decisive options of a SnellaBackbone's adapters; empty without any."""
    for adapter in list_adapters(wrapper).values():
        return {
            "rank": adapter.rank,
            "heads": adapter.in_factors.shape[0],
            "kernel": adapter.rule.kernel,
            "sparsifier": adapter.rule.sparsifier,
            "scale": adapter.rule.scale,
        }
    return {}


def encode_header(header: dict) -> Tensor:
    """A header as uint8 tensor, which safe loading takes."""
    return torch.frombuffer(bytearray(json.dumps(header).encode()), dtype=torch.uint8)


def decode_header(value: Tensor) -> dict:
    """The header in a tensor.

    Raises:
        CheckpointError: when it is none.
    """
    try:
        header = json.loads(bytes(value.tolist()))
        header["version"], header["base"]["weights"], header["adapter"]
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(
            "the checkpoint's SNELLA header cannot be read; it is damaged, get the file anew"
        ) from None
    return header


def check_version(version, what: str) -> None:
    """Refuse a format that this version of the package does not know.

    Raises:
        CheckpointError: saying which is older.
    """
    if version == FORMAT_VERSION:
        return
    newer = isinstance(version, int) and version > FORMAT_VERSION
    raise CheckpointError(
        f"{what} has format version {version}, this snella_seg reads {FORMAT_VERSION}: "
        + ("update snella_seg" if newer else "write it anew from its checkpoint")
    )


def check_adapter_options(wrapper: nn.Module, header: dict) -> None:
    """Refuse a header whose adapters compute otherwise than a SnellaBackbone's.

    Raises:
        CheckpointError: listing the options that differ.
    """
    own, given = adapter_options(wrapper), header["adapter"]
    if not own or not given:  # what is missing is told where names are compared
        return
    differing = [f"{k} {given.get(k)} instead of {own[k]}" for k in own if given.get(k) != own[k]]
    if differing:
        raise CheckpointError(
            f"the adapters of the checkpoint differ from this model's in {', '.join(differing)}; "
            "set adapter=dict(...) of SnellaBackbone as it was in training"
        )


def differing_backbone(own: dict, given: dict) -> str | None:
    """Tell whether two configs of inner backbones (:func:`plain_config`) make the same one.

    Returns:
        None, or a sentence that says what differs.
    """
    own, given = (
        {key: value for key, value in config.items() if key not in _FREE} for config in (own, given)
    )
    if own.get("type") != given.get("type"):
        return f"the adapters belong to a {given.get('type')}, this backbone is a {own.get('type')}"
    keys = [key for key in {**own, **given} if own.get(key) != given.get(key)]
    if not keys:
        return None
    values = ", ".join(f"{key} {given.get(key)} instead of {own.get(key)}" for key in keys)
    return f"the adapters belong to another {own['type']}: {values}"


def plain_config(value):
    """A config's value as JSON has it: tuples become lists, classes their names."""
    if isinstance(value, dict):
        return {str(key): plain_config(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_config(item) for item in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, type):
        return value.__name__
    return plain_config(value.tolist()) if hasattr(value, "tolist") else str(value)


def compare_base(wrapper: nn.Module, header: dict) -> str | None:
    """Tell whether a SnellaBackbone has the base that a header names.

    Returns:
        None, or a sentence that says what differs.
    """
    other = differing_backbone(wrapper.inner_config, header.get("backbone") or {})
    if other:
        return other
    frozen = frozen_state(wrapper)
    own, expected = fingerprint(frozen), header["base"]["weights"]
    norms = header["base"].get("norms", {})
    for what, names in (
        ("lacks", [n for n in expected if n not in own]),
        ("has, where the adapters' base has none,", [n for n in own if n not in expected]),
    ):
        if names:
            return f"this model's frozen base {what} {some(names)}"
    differing = [
        name
        for name in expected
        if own[name] != expected[name]
        and not (name in norms and math.isclose(_norm(frozen[name]), norms[name], rel_tol=1e-5))
    ]
    if not differing:
        return None
    source = header["base"].get("source") or "weights of unknown origin"
    return (
        f"the adapters were trained on another base ({source}): {len(differing)} of "
        f"{len(expected)} frozen weights differ: {some(differing)}"
    )


def _norm(value: Tensor) -> float:
    return float(value.double().norm())
