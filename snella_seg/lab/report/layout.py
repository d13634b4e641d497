"""Where in the model a matrix sits: block and kind, from its name."""

import os
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from ...inject import KINDS


@dataclass(frozen=True)
class Layout:
    """Matrices as cells of a table: a row for each block, a column for each kind.

    Attributes:
        blocks: labels of the rows, from the input to the output: ``3``, or ``2.5`` for block 5 of
            stage 2.
        kinds: labels of the columns: q, k, v, proj, fc1, fc2, then others.
        rows, columns: cell of each matrix, (L,) each.
    """

    blocks: tuple[str, ...]
    kinds: tuple[str, ...]
    rows: np.ndarray
    columns: np.ndarray

    def grid(self, values: np.ndarray) -> np.ndarray:
        """Values of the matrices, (L,), as a table (blocks, kinds); NaN where there is none."""
        table = np.full((len(self.blocks), len(self.kinds)), np.nan)
        table[self.rows, self.columns] = values
        return table

    def by_kind(self) -> dict[str, np.ndarray]:
        """Kind -> which matrices are of it, (L,) booleans."""
        return {kind: self.columns == i for i, kind in enumerate(self.kinds)}

    def by_depth(self) -> dict[str, np.ndarray]:
        """Third of the blocks, named by its first and last -> which matrices are in it."""
        thirds = [t for t in np.array_split(np.arange(len(self.blocks)), 3) if len(t)]
        return {
            self._span(third): (self.rows >= third[0]) & (self.rows <= third[-1])
            for third in thirds
        }

    def label(self, matrix: int) -> str:
        """What to call a matrix: its block and kind."""
        return f"block {self.blocks[self.rows[matrix]]} {self.kinds[self.columns[matrix]]}"

    def _span(self, rows: np.ndarray) -> str:
        first, last = self.blocks[rows[0]], self.blocks[rows[-1]]
        return f"block {first}" if first == last else f"blocks {first} to {last}"


def lay_out(names: tuple[str, ...]) -> Layout:
    """Sort matrices, named in the order of the model, into blocks and kinds.

    A block ends at the number behind ``blocks``, else at the first number of a name:
    ``layers.3.attn.attn.q`` is q of ``layers.3``, ``stages.2.blocks.5.mlp.fc1`` fc1 of
    ``stages.2.blocks.5``. Where a block has several matrices of a kind, their columns are told
    apart by the path to them.
    """
    places = [_place(name) for name in names]
    counts = Counter((block, kind) for block, _, kind in places)
    shared = {kind for (_, kind), count in counts.items() if count > 1}
    cells = [
        (block, f"{path}.{kind}" if path and kind in shared else kind)
        for block, path, kind in places
    ]
    blocks = list(dict.fromkeys(block for block, _ in cells))
    found = dict.fromkeys(kind for _, kind in cells)
    kinds = [k for k in KINDS if k in found] + [k for k in found if k not in KINDS]
    return Layout(
        _labels(blocks),
        tuple(kinds),
        np.array([blocks.index(block) for block, _ in cells]),
        np.array([kinds.index(kind) for _, kind in cells]),
    )


def _place(name: str) -> tuple[str, str, str]:
    """Block, path within the block, and kind of a matrix."""
    module, _, kind = name.rpartition(".")
    match = re.match(r"(?:.*?\.)?blocks[._]\d+(?=\.|$)", module)
    match = match or re.match(r"[^0-9]*?(?:[._]|^)\d+(?=\.|$)", module)
    block = match.group() if match else module
    return block, module[len(block) :].lstrip("."), kind


def _labels(blocks: list[str]) -> tuple[str, ...]:
    """Short names of blocks: their numbers, or what is left of a common beginning."""
    labels = []
    for block in blocks:
        numbers = ".".join(re.findall(r"(?<![^._])\d+(?=\.|$)", block))
        holds_others = any(other.startswith(block + ".") for other in blocks)
        labels.append(f"{numbers} (stage)" if numbers and holds_others else numbers)
    if all(labels) and len(set(labels)) == len(labels):
        return tuple(labels)
    common = os.path.commonprefix([block + "." for block in blocks]).rpartition(".")[0]
    return tuple(block[len(common) :].lstrip(".") or block or "model" for block in blocks)
