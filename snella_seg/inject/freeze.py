"""What of a backbone is trained besides the adapters."""

import fnmatch
from collections.abc import Iterable

from torch import nn

from .attach import adapter_keys
from .targets import near_matches

#: Norms that segmentation puts behind the stages of a pretrained backbone, as mmseg's Swin does. No
#: pretrained file holds them, so they are trained, and belong to the heads where these have a
#: learning rate of their own.
OUTPUT_NORMS = "norm[0-9]"
#: What ``trainable='auto'`` trains, where a backbone has it.
AUTO_TRAINABLE = ("cls_token", OUTPUT_NORMS)


def is_output_norm(name: str) -> bool:
    """Whether a backbone's parameter belongs to a norm that segmentation added."""
    return fnmatch.fnmatchcase(name.partition(".")[0], OUTPUT_NORMS)


def freeze_base(model: nn.Module, trainable: str | Iterable[str] = "auto") -> None:
    """Let only the parameters that match ``trainable`` take gradients, and what of adapters does.

    Args:
        model: the adapted backbone.
        trainable: ``'auto'`` for the class token and Swin's output norms, where there are any; or
            patterns for names of parameters or of modules (:mod:`fnmatch`). ``'cls_token'`` may
            match nothing, since not every backbone has one.

    Raises:
        ValueError: when another pattern matches nothing; the message names near matches.
    """
    if isinstance(trainable, str):
        trainable = AUTO_TRAINABLE if trainable == "auto" else [trainable]
    patterns, ours = list(trainable), adapter_keys(model)
    base = [name for name, _ in model.named_parameters() if name not in ours]
    for pattern in patterns:
        if pattern not in AUTO_TRAINABLE and not any(covers(pattern, name) for name in base):
            owners = {name.rpartition(".")[0] for name in base} - {""}
            near = near_matches(pattern, {*base, *owners})
            raise ValueError(f"trainable {pattern!r} matches no parameter{near}")
    for name, parameter in model.named_parameters():
        if name not in ours:
            parameter.requires_grad_(any(covers(pattern, name) for pattern in patterns))


def covers(pattern: str, name: str) -> bool:
    """Whether a pattern names the parameter, a module that owns it, or its last part."""
    parts = name.split(".")
    owners = (".".join(parts[:i]) for i in range(1, len(parts) + 1))
    return parts[-1] == pattern or any(fnmatch.fnmatchcase(owner, pattern) for owner in owners)
