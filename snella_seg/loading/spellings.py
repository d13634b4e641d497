"""One spelling of each weight that models of one architecture spell differently, and back.

Libraries pack q, k and v in one matrix or keep them apart, call LayerScale ``ls1.gamma`` or
``gamma_1``, have two matrices for a gated MLP or one. Weights are first brought to one spelling,
then to that of the backbone that is to have them. Nothing is computed but joined, split and masked.
"""

import re

import torch
from torch import Tensor

_NAMES = (
    (r"^(register_tokens|storage_tokens)$", "reg_token"),
    (r"\.gamma_(\d)$", r".ls\1.gamma"),
    (r"\.(?:attn|ffn)\.gamma(\d)\.(?:weight|scale)$", r".ls\1.gamma"),  # mmpretrain
    (r"\.attn\.([qkv])_(?:proj\.)?(weight|bias)$", r".attn.\1.\2"),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
_SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"


def numberless(name: str) -> str:
    """A weight's name with its numbers left out: that of all blocks."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "#", name)


def to_common_spelling(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by timm's names in one spelling: q, k, v packed, gates apart.

    A packed bias has zeros where the file has none, as for the keys of BEiT and DINOv3.
    """
    common = {}
    for name, value in state.items():
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        if ".mlp.w12." in name:
            gate, linear = value.chunk(2)
            common[name.replace("w12", "fc1_g")] = gate
            common[name.replace("w12", "fc1_x")] = linear
        else:
            common[name] = value
    return _join_qkv(common)


def _join_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    joined: dict[str, Tensor] = {}
    for name, value in state.items():
        found = re.match(r"(.*\.attn)\.[qkv]\.(weight|bias)$", name)
        if found is None:
            joined[name] = value
            continue
        owner, kind = found.groups()
        parts = [state.get(f"{owner}.{part}.{kind}") for part in "qkv"]
        if kind == "bias":
            parts = [torch.zeros_like(value) if part is None else part for part in parts]
        if any(part is None for part in parts):
            joined[name] = value
        else:
            joined[f"{owner}.qkv.{kind}"] = torch.cat([part for part in parts if part is not None])
    return joined


def to_spelling_of(state: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in the common spelling as a backbone spells them.

    Args:
        state: of :func:`to_common_spelling`.
        target: the backbone's own weights by timm's names.

    Returns:
        A new dict. What the backbone knows in no spelling keeps its name. A bias of q, k and v
        that is zero is left out where the backbone has none, and that of the keys, which no
        softmax sees, where it has those of q and v only.
    """
    places = {numberless(name) for name in target}
    spelled: dict[str, Tensor] = {}
    for name, value in state.items():
        if numberless(name) in places:
            spelled[name] = value
        else:
            spelled.update(_spell(name, value, places))
    return _spread_table(_pack_gates(spelled, places), target)


def _spell(name: str, value: Tensor, places: set[str]) -> dict[str, Tensor]:
    """One weight as one or several that have a place; itself where there is none."""
    found = re.match(r"(.*\.attn)\.qkv\.(weight|bias)$", name)
    if found:
        owner, kind = found.groups()
        for form in (f"{owner}.{{}}_proj.{kind}", f"{owner}.{{}}_{kind}", f"{owner}.{{}}.{kind}"):
            parts = {form.format(p): v for p, v in zip("qkv", value.chunk(3), strict=True)}
            kept = {k: v for k, v in parts.items() if numberless(k) in places}
            if kept:
                return kept
        return {} if kind == "bias" and not value.any() else {name: value}
    other = re.sub(r"\.ls(\d)\.gamma$", r".gamma_\1", name)
    return {other if numberless(other) in places else name: value}


def _pack_gates(state: dict[str, Tensor], places: set[str]) -> dict[str, Tensor]:
    """Join the two first matrices of gated MLPs where the backbone has them in one."""
    packed = {}
    for name, value in state.items():
        one = re.sub(r"\.fc1_[gx]\.", ".fc1.", name)
        if one == name or numberless(name) in places or numberless(one) not in places:
            packed[name] = value
        elif ".fc1_g." in name:
            linear = state.get(name.replace("fc1_g", "fc1_x"))
            packed[one] = value if linear is None else torch.cat([value, linear])
    return packed


def _spread_table(state: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give each block the table of position biases that BEiT's pretraining shared."""
    if _SHARED_TABLE not in state or _SHARED_TABLE in target:
        return state
    table = state[_SHARED_TABLE]
    names = [n for n in target if n.endswith(".attn.relative_position_bias_table")]
    rest = {name: value for name, value in state.items() if name != _SHARED_TABLE}
    return {**{name: table for name in names}, **rest} if names else state
