"""How deep in a backbone a parameter sits, by its name: for learning rates that fall with depth."""

import math
import re
from bisect import bisect_right
from collections.abc import Iterable

#: What holds stages and blocks in mmseg and timm; the index follows, after a dot or an underscore.
_CONTAINER = re.compile(r"(layers|blocks|stages|levels)(_\d+)?")
_NORM = re.compile(r"(.*norm|ln)\d*")


def depths(names: Iterable[str]) -> dict[str, int]:
    """How many blocks lie above each parameter of a backbone, and one for its embeddings.

    Blocks are known by indices behind ``layers``, ``blocks``, ``stages`` or ``levels``, one (ViT,
    ``layers.3``) or more (Swin, ``stages.2.blocks.5``). What lies between blocks, such as
    Swin's downsampling, counts with the last block before it.

    Args:
        names: of the backbone's parameters, all of them.

    Returns:
        Name -> 0 for norms behind the last block, 1 for the last block, and so on; the number of
        blocks plus one for what comes before the first: patch and position embeddings, tokens.
    """
    places = {name: _place(name) for name in names}
    deepest = max((len(place) for place in places.values()), default=0)
    blocks = sorted({place for place in places.values() if deepest and len(place) == deepest})
    found = {}
    for name, place in places.items():
        if place:
            passed = bisect_right(blocks, (*place, math.inf))
            found[name] = len(blocks) + 1 - passed
        else:
            behind = any(_NORM.fullmatch(part) for part in name.split(".")[:-1])
            behind = behind and "embed" not in name and "pre" not in name
            found[name] = 0 if behind else len(blocks) + 1
    return found


def _place(name: str) -> tuple[int, ...]:
    """The indices of the stage and block that a name leads through; empty for other parts."""
    place: list[int] = []
    held = False
    for part in name.split("."):
        container = _CONTAINER.fullmatch(part)
        if container is not None:
            held = True
            place += [int(container[2][1:])] if container[2] else []
        elif held and part.isdigit():
            place.append(int(part))
        elif place:
            break
        else:
            held = False
    return tuple(place)
