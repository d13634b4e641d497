"""The history of a run's allocations, as arrays."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...budget import HISTORY

_REQUIRED = ("epoch", "iter", "budget", "nonzero", "sparsity")


@dataclass(frozen=True)
class History:
    """T allocations among L matrices, in the order of the model.

    Attributes:
        names: of the matrices, L of them.
        sizes: weights of each matrix, (L,).
        epochs, iters: when each allocation took place, (T,).
        budget: weights in force over all matrices, (T,).
        nonzero: weights in force in each matrix, (T, L).
        score: importances by which the matrices competed, (T, L); NaN where there were none. None
            when there never were.
        norm: Frobenius norms of the deltas, (T, L), or None in histories that lack them.
        entered, left: weights that entered and left the ones in force since the allocation before,
            (T, L); NaN at the first. None in histories that lack them.
        due: whether the matrices competed anew, or the budget was shared as before, (T,).
        cut_off: whether the last line was cut off, by a kill, and is left out.
    """

    names: tuple[str, ...]
    sizes: np.ndarray
    epochs: np.ndarray
    iters: np.ndarray
    budget: np.ndarray
    nonzero: np.ndarray
    score: np.ndarray | None
    norm: np.ndarray | None
    entered: np.ndarray | None
    left: np.ndarray | None
    due: np.ndarray
    cut_off: bool = False

    @property
    def density(self) -> np.ndarray:
        """Share of each matrix's weights that take part, (T, L)."""
        return self.nonzero / self.sizes

    @property
    def period(self) -> int | None:
        """Iterations between allocations; None when there was only the first."""
        late = np.flatnonzero(self.epochs)
        return int(self.iters[late[0]] // self.epochs[late[0]]) if len(late) else None


def read_history(work_dir: str | Path) -> History:
    """Read ``sparsity_history.jsonl`` of a work dir.

    A last line that a kill has cut off is left out. Histories written before norms and churn were
    recorded are read as well.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when it holds no allocation, a line cannot be read, or lines contradict
            themselves or each other.
    """
    path = Path(work_dir) / HISTORY
    if not path.is_file():
        raise FileNotFoundError(
            f"no history of allocations: {path}. SparsityAllocationHook writes it as soon as "
            "training begins; give the work dir of a run with this hook and a method that "
            "allocates (model.backbone.method)"
        )
    records, cut_off = _parse(path)
    names = tuple(records[0]["nonzero"])
    for number, record in enumerate(records, 1):
        _check_names(record, names, f"{path}, line {number}")

    def column(key):
        return np.array([[record[key][n] for n in names] for record in records])

    counts, sparsity = column("nonzero"), column("sparsity")
    history = History(
        names=names,
        sizes=_sizes(counts, sparsity, names, path),
        epochs=np.array([record["epoch"] for record in records]),
        iters=np.array([record["iter"] for record in records]),
        budget=np.array([record["budget"] for record in records]),
        nonzero=counts,
        **{key: _optional(records, key, names) for key in ("score", "norm", "entered", "left")},
        due=np.array([record.get("due", True) for record in records]),
        cut_off=cut_off,
    )
    _check(history, sparsity, path)
    return history


def _parse(path: Path) -> tuple[list[dict], bool]:
    """All whole lines of a history, and whether the last one was cut off."""
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines) > 1:
                return records, True
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
        missing = [k for k in _REQUIRED if not isinstance(record, dict) or k not in record]
        if missing:
            raise ValueError(f"{path}, line {number} is no allocation: no {', '.join(missing)}")
        records.append(record)
    if not records:
        raise ValueError(f"{path} is empty: the run ended before its first allocation")
    return records, False


def _check_names(record: dict, names: tuple[str, ...], where: str) -> None:
    """See that every figure of a line is given for the same matrices."""
    for key in ("nonzero", "sparsity", "score", "norm", "entered", "left"):
        given = record.get(key)
        if given is None and key not in ("nonzero", "sparsity"):
            continue
        if not isinstance(given, dict) or set(given) != set(names):
            odd = sorted(set(given or ()) ^ set(names))[:3]
            raise ValueError(
                f"{where}: {key} is not of the {len(names)} matrices of the first line"
                f" (they differ in {', '.join(odd)}); the file mixes runs"
            )


def _optional(records: list[dict], key: str, names: tuple[str, ...]) -> np.ndarray | None:
    """Figures that may be missing, (T, L) with NaN for those; None when all are."""
    if all(record.get(key) is None for record in records):
        return None
    nothing = dict.fromkeys(names, np.nan)
    given = [record.get(key) or nothing for record in records]
    return np.array([[g[name] for name in names] for g in given], dtype=float)


def _sizes(counts: np.ndarray, sparsity: np.ndarray, names, path: Path) -> np.ndarray:
    """Weights of each matrix: counts over densities, where the latter are largest; (L,)."""
    best = counts.argmax(0)[None]
    most = np.take_along_axis(counts, best, 0)[0]
    density = 1.0 - np.take_along_axis(sparsity, best, 0)[0]
    for name, count, share in zip(names, most, density, strict=True):
        if count < 1 or not 0.0 < share <= 1.0:
            raise ValueError(
                f"{path}: {name} has {count} weights in force at a density of {share} at best, "
                "which does not tell its size"
            )
    return np.rint(most / density).astype(np.int64)


def _check(history: History, sparsity: np.ndarray, path: Path) -> None:
    """See that a history does not contradict itself."""
    wrong = np.argwhere(np.rint((1.0 - sparsity) * history.sizes) != history.nonzero)
    if len(wrong):
        row, column = wrong[0]
        raise ValueError(
            f"{path}, line {row + 1}: {history.names[column]} has "
            f"{history.nonzero[row, column]} weights in force, which does not fit its sparsity "
            f"{sparsity[row, column]} and size {history.sizes[column]}"
        )
    sums = history.nonzero.sum(1)
    for number, (budget, total) in enumerate(zip(history.budget, sums, strict=True), 1):
        if budget != total:
            raise ValueError(
                f"{path}, line {number}: the budget is {budget}, but {total} weights are in force"
            )
    if (np.diff(history.epochs) <= 0).any():
        raise ValueError(f"{path}: epochs do not grow ({history.epochs.tolist()}); it mixes runs")
