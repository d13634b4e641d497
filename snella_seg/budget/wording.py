"""What a run says of its budget, in its log."""

from collections.abc import Mapping

KIND = "snella/sparsity_"  #: begins the name of a scalar that holds the sparsity of a kind


def allocation_text(record: dict, scalars: Mapping[str, float], weights: int, asked: bool) -> str:
    """An allocation.

    Args:
        record: its line of the history.
        scalars: its scalars for the visualizer.
        weights: the number of delta weights.
        asked: whether a reallocation had to be due.
    """
    kinds = {k.removeprefix(KIND): v for k, v in scalars.items() if k.startswith(KIND)}
    return (
        f"SNELLA budget of epoch {record['epoch']}: {record['budget']} of {weights} "
        "delta weights; sparsity "
        + ", ".join(f"{kind} {value:.3f}" for kind, value in kinds.items())
        + (due_text(record) if asked else "")
    )


def due_text(record: dict) -> str:
    """What became of ``reallocate='when_due'``; empty where nothing could be compared."""
    if record["moved"] is None:
        return ""
    done = "competed anew" if record["due"] else "shared as before, no reallocation is due"
    return f"; {record['moved']:.1%} of it would move: {done}"


def no_reallocation_text(iteration: int, last: int, period: int) -> str:
    """A run that ended at ``iteration``, of ``last``, without any reallocation."""
    early = f"training stopped after {iteration} of {last} iterations"
    late = "the run was resumed, without SNELLA state, too near its end"
    return (
        f"{early if iteration < last else late}: no reallocation took place (one is due every "
        f"{period} iterations), all sparsities are those that it began with"
    )


def resumed_text(
    now: dict, before: dict, in_force: int, target: int, images: int | None
) -> str | None:
    """What became of the budget in a run that is resumed otherwise; None where nothing changed.

    Args:
        now, before: what the budgets to come depend on, by name.
        in_force: weights that the run goes on with.
        target: weights that it ends with.
        images: how many are to lie between reallocations.
    """
    changes = [f"{k} {before[k]} -> {now[k]}" for k in now if before.get(k, now[k]) != now[k]]
    if not changes:
        return None
    return (
        f"resumed with another schedule of the budget ({', '.join(changes)}): it goes on from "
        f"the {in_force} weights in force to {target}"
        + (", and grows, as asked for" if target > in_force else ", and does not grow")
        + _apart(now, before, images)
    )


def _apart(now: dict, before: dict, images: int | None) -> str:
    """How far reallocations are apart, where an iteration takes another number of images."""
    each = now["images an iteration"]
    if not each or each == before.get("images an iteration", each):
        return ""
    kept = each * now["iterations between reallocations"]
    wanted = "" if kept == images else f", as near as whole iterations come to {images}"
    return f"; reallocations are {kept} images apart{wanted}"
