"""A file's weights, whatever they are called in it, by a backbone's own names."""

import re
from collections import Counter
from typing import NamedTuple

from torch import Tensor, nn

from ..inject import base_state, is_adapter_key
from .errors import CheckpointError, some
from .formats import kind_of_unused, recognise, unwrap
from .names import common_names, to_own_names
from .resizing import filter_by_timm, fit_bands, fit_positions, resize
from .spellings import numberless, to_common_spelling, to_spelling_of

_BLOCK = re.compile(r"^(timm_model\.(model\.)?)?(blocks?|layers|stages)[_.]?\d")
#: Weights outside of blocks without which a model computes something else.
_COMPUTING = ("cls_token", "pos_embed", "reg_token", "rel_pos_bias.relative_position_bias_table")


class Conversion(NamedTuple):
    """What became of a file's weights.

    ``state`` has them by the backbone's own names, ``layout`` is the name of the file's (None for
    the backbone's own), ``ignored`` has kind -> names of what was left out, ``resized`` names with
    both shapes.
    """

    state: dict[str, Tensor]
    layout: str | None
    ignored: dict[str, list[str]]
    resized: list[str]

    def lines(self, source: str) -> list[str]:
        """What to tell of it, a line each."""
        said = [] if self.layout is None else [f"{source}: converted from {self.layout}"]
        if self.resized:
            said.append(f"{source}: resized {some(self.resized, 3)}")
        if self.ignored:
            kinds = [f"{len(names)} of {kind}" for kind, names in self.ignored.items()]
            said.append(f"{source}: ignored {', '.join(kinds)}")
        return said


def convert(
    weights: dict[str, Tensor], backbone: nn.Module, source: str, bands: str = "mean"
) -> Conversion:
    """Bring a file's weights to a backbone's names, tokens, sizes and bands.

    Args:
        weights: what the file holds (:func:`snella_seg.loading.weights_file.read_weights`).
        backbone: that is to have them.
        source: the file, for messages.
        bands: how a trained patch embedding for other bands starts
            (:func:`snella_seg.loading.resizing.fit_bands`).

    Raises:
        CheckpointError: when weights of blocks have no counterpart in the backbone, so that it
            would compute something else.
    """
    expected = base_state(backbone)
    state, outside = unwrap(weights)
    state = {k: v for k, v in state.items() if k in expected or not is_adapter_key(k)}
    target = common_names(expected)
    ignored: dict[str, list[str]] = {}
    for name in outside:
        ignored.setdefault(kind_of_unused(name) or "parts outside of the backbone", []).append(name)
    state, layout = _to_names(state, expected, target, backbone, source, ignored)
    kept = _without_unused(state, expected, ignored)
    kept = fit_bands(resize(_without_indices(kept, expected), backbone), backbone, bands)
    return Conversion(kept, layout, ignored, _resized(state, kept, expected))


def _without_unused(state: dict, places: dict, ignored: dict[str, list[str]]) -> dict[str, Tensor]:
    """Leave out what a backbone may do without and has no place for; ``ignored`` takes names."""
    kept = {}
    for name, value in state.items():
        kind = None if name in places else kind_of_unused(name)
        if kind is None:
            kept[name] = value
        else:
            ignored.setdefault(kind, []).append(name)
    return kept


def _without_indices(state: dict, expected: dict) -> dict[str, Tensor]:
    """Leave out computed buffers: a backbone has those of its own window."""
    return {
        k: v
        for k, v in state.items()
        if k not in expected or v.is_floating_point() or k.endswith("num_batches_tracked")
    }


def _resized(state: dict, kept: dict, expected: dict) -> list[str]:
    """Names and shapes of what has another size in the file; stock code may yet see to it."""
    found = []
    for name in kept:
        if name not in expected or not name.endswith(("pos_embed", "_bias_table", "proj.weight")):
            continue
        old, new = tuple(state[name].shape), tuple(expected[name].shape)
        if old != new:
            found.append(f"{name} {old} to {new}")
    return found


def _to_names(
    state: dict[str, Tensor],
    expected: dict[str, Tensor],
    target: dict[str, Tensor],
    backbone: nn.Module,
    source: str,
    ignored: dict[str, list[str]],
) -> tuple[dict[str, Tensor], str | None]:
    """Weights by the backbone's own names, and the name of the layout that they had."""
    if _fits(state, expected):
        return state, None
    found = recognise(state)
    if found is None:
        state = _without_unused(filter_by_timm(state, backbone), {**expected, **target}, ignored)
        return to_own_names(state, set(expected)), None
    state = to_spelling_of(to_common_spelling(found.convert(state)), target)
    state = fit_positions(state, backbone)
    places = {numberless(name) for name in target}
    foreign = [
        name
        for name in state
        if (_BLOCK.match(name) or name in _COMPUTING)
        and numberless(name) not in places
        and kind_of_unused(name) is None
    ]
    if foreign and any(_BLOCK.match(name) for name in target):
        kinds = Counter(numberless(name) for name in foreign)
        raise CheckpointError(
            f"{source} ({found.name}) holds {len(foreign)} weights that have no "
            f"counterpart in this {type(backbone).__name__}: {some(list(kinds))}; use the "
            "TIMMBackbone of this model"
        )
    state = _without_unused(state, target, ignored)
    return to_own_names(state, set(expected)), found.name


def _fits(state: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Whether a file's blocks are named as a backbone names its own."""
    places = {numberless(name) for name in expected}
    blocks = [n for n in state if _BLOCK.match(n) and kind_of_unused(n) is None]
    return bool(blocks) and all(numberless(name) in places for name in blocks)
