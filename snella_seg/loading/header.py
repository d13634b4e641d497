"""How a task's adapters and their frozen base know each other.

Slim checkpoints and adapter files hold a task's part only. With it goes a header, a JSON text that
travels in the state dict as bytes, which says how the adapters compute and names the base by a
digest of each of its weights.
"""

import hashlib
import json
from collections.abc import Collection

import torch
from torch import Tensor, nn

from ..inject import base_state, list_adapters
from .errors import CheckpointError, some

#: Name of the header in a state dict, after the prefix of the wrapped backbone.
HEADER = "snella_header"
FORMAT_VERSION = 1
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


def frozen_state(wrapper: nn.Module, trained: Collection[str] | None = None) -> dict[str, Tensor]:
    """The frozen base of a SnellaBackbone: all that its training leaves as it was.

    Args:
        wrapper: the SnellaBackbone.
        trained: names of the base parameters that are trained; default the wrapper's own.

    Returns:
        Names as of the stock backbone -> weights and computed buffers. Adapters, base parameters
        that are trained, and running statistics are left out.
    """
    trained = wrapper.trained_base if trained is None else trained
    return {
        name: value
        for name, value in base_state(wrapper.backbone).items()
        if name not in trained and not name.endswith(_RUNNING)
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
        "adapter": header_options(wrapper),
        "method": wrapper.method_name,
        "backbone": wrapper.inner_config,
        "base": {
            "source": wrapper.base_source or wrapper.named_source,
            "weights": fingerprint(frozen),
            "sketches": {name: _sketch(value) for name, value in resized.items()},
        },
    }


def header_options(wrapper: nn.Module) -> dict:
    """The options that decide what an adapter's values mean; empty without adapters."""
    adapter = next(iter(list_adapters(wrapper).values()), None)
    return {} if adapter is None else adapter.options()


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
        check_header(header)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(
            "the checkpoint's SNELLA header cannot be read; it is damaged, get the file anew"
        ) from None
    return header


def check_header(header) -> None:
    """See that a header is one, whatever its version.

    Raises:
        KeyError, TypeError: when it is something else.
    """
    header["version"]
    for part in (header["adapter"], header["backbone"], header["base"]["weights"]):
        if not isinstance(part, dict):
            raise TypeError("a part of the header is no dict")


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
    own, given = header_options(wrapper), header["adapter"]
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
    kind, other = (str(config.pop("type", None)).rpartition(".")[2] for config in (own, given))
    if kind != other:
        return f"the adapters belong to a {other}, this backbone is a {kind}"
    keys = [key for key in {**own, **given} if _text(own.get(key)) != _text(given.get(key))]
    if not keys:
        return None
    values = ", ".join(f"{key} {given.get(key)} instead of {own.get(key)}" for key in keys)
    return f"the adapters belong to another {kind}: {values}"


def _text(value) -> str:
    """A value to compare by: dicts in any order are the same, and so is NaN."""
    return json.dumps(value, sort_keys=True)


def compare_base(
    wrapper: nn.Module, header: dict, trained: Collection[str] | None = None
) -> str | None:
    """Tell whether a SnellaBackbone has the base that a header names.

    Args:
        wrapper: the SnellaBackbone.
        header: of a task.
        trained: what the task trains in the base; default what the SnellaBackbone does.

    Returns:
        None, or a sentence that says what differs.
    """
    other = differing_backbone(wrapper.inner_config, header.get("backbone") or {})
    if other:
        return other
    frozen = frozen_state(wrapper, trained)
    own, expected = fingerprint(frozen), header["base"]["weights"]
    sketches = header["base"].get("sketches", {})
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
        and not (name in sketches and _close(_sketch(frozen[name]), sketches[name]))
    ]
    if not differing:
        return None
    source = header["base"].get("source") or "weights of unknown origin"
    return (
        f"the adapters were trained on another base ({source}): {len(differing)} of "
        f"{len(expected)} frozen weights differ: {some(differing)}"
    )


def _sketch(value: Tensor) -> list[float]:
    """Norm, sum and a fixed projection of a tensor, in float64."""
    flat = value.detach().cpu().double().flatten()
    waves = torch.arange(len(flat), dtype=torch.float64).sin()
    return [float(flat.norm()), float(flat.sum()), float(flat @ waves)]


def _close(own: list[float], expected: list[float]) -> bool:
    """Whether two sketches are those of one tensor, but for rounding in single precision."""
    return all(abs(a - b) <= 1e-5 * expected[0] for a, b in zip(own, expected, strict=True))
