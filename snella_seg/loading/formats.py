"""Layouts in which pretrained weights are published, as data, and which of them a file has.

Each entry renames to timm's names. Names of those who made a model first differ from these in
spelling only, which :mod:`snella_seg.loading.spellings` evens out for all. A layout of your own is
an entry: ``FORMATS.insert(0, Format("mine", marks=..., names=...))``.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from . import huggingface, official

#: Beginnings under which a model is kept in a larger one; what is outside of it is left out.
PREFIXES = (
    "backbone.backbone.",  # a SnellaBackbone in a segmentor
    "backbone.",  # mmseg, mmpretrain, DINO's heads
    "module.base_encoder.",  # MoCo v3
    "base_encoder.",
    "module.",  # DistributedDataParallel
    "teacher.",  # self-distillation
    "encoder_q.",
    *huggingface.PREFIXES,
)

#: Kinds of weights that a backbone for segmentation has no use for, by the beginnings or ends of
#: their names.
_UNUSED = {
    "classification head": (
        r"^(head|head_dist|fc|fc_norm|pre_logits|classifier|cls_classifier|distillation_classifier|"
        r"pooler|last_layer|lm_head|attn_pool)(\.|/|$)"
    ),
    "decoder or other head": (
        r"^(decoder|neck|decode_head|auxiliary_head|projector|projectors|mask_head|dino_head|"
        r"ibot_head|momentum_encoder|predictor)(_[a-z]+)*(\.|$)"
    ),
    "mask token": r"(^|\.)mask_token$",
    "distillation token": r"^dist_token$",
    "last norm": r"^(norm|ln1)\.(weight|bias)$",
    "computed buffer": (
        r"(^|\.)(relative_position_index|attn_mask|relative_coords_table|periods|bias_mask|"
        r"position_ids)$"
    ),
}


@dataclass(frozen=True)
class Format:
    """A published layout.

    Args:
        name: for messages.
        marks: regular expressions; the file has this layout if each of them is found in some name.
        names: pairs of a regular expression and what takes its place, applied to each name in this
            order; they give timm's names.
        values: functions of the renamed state that change values or join and split weights.
    """

    name: str
    marks: tuple[str, ...]
    names: tuple[tuple[str, str], ...] = ()
    values: tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], ...] = ()

    def fits(self, names) -> bool:
        """Whether a file with these names has this layout."""
        return all(any(re.search(mark, name) for name in names) for mark in self.marks)

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights by timm's names; spellings of LayerScale, biases and tokens may be others."""
        renamed = {}
        for name, value in state.items():
            for pattern, replacement in self.names:
                name = re.sub(pattern, replacement, name)
            renamed[name] = value
        for change in self.values:
            renamed = change(renamed)
        return renamed


#: The first that fits counts, so special layouts stand before general ones.
FORMATS: list[Format] = [
    *(Format(*entry) for entry in huggingface.FORMATS),
    *(Format(*entry) for entry in official.FORMATS),
]


def recognise(state: dict[str, Tensor]) -> Format | None:
    """The layout of a file's weights, None for an unknown one."""
    return next((f for f in FORMATS if f.fits(state)), None)


def unwrap(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Take a backbone's weights out of a larger model's.

    Returns:
        Weights by the names that they have in the backbone, and names of those outside of it.
    """
    outside: list[str] = []
    for _ in range(4):  # module.backbone.vit.
        prefix = next((p for p in PREFIXES if any(k.startswith(p) for k in state)), None)
        if prefix is None:
            break
        outside += [k for k in state if not k.startswith(prefix)]
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return state, outside


def kind_of_unused(name: str) -> str | None:
    """What a weight is that a backbone for segmentation may do without; None for any other."""
    return next((kind for kind, mark in _UNUSED.items() if re.search(mark, name)), None)
