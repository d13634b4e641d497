"""How many weights there are to give, from epoch to epoch."""

import math
from collections.abc import Callable


def cubic(left: int, span: int) -> tuple[int, int]:
    """``(l / S)^3``, as published: falls fast while there is much to choose from."""
    return left**3, span**3


def late(left: int, span: int) -> tuple[int, int]:
    """``(l / S)^2 (3 - 2 l / S)``: slow at both ends, half of the way down at half of the time."""
    return left**2 * (3 * span - 2 * left), span**3


def dense_first_half(left: int, span: int) -> tuple[int, int]:
    """The initial budget for the first half of the time, the cubic curve in the second."""
    return min(2 * left, span) ** 3, span**3


#: Curves of the budget by name: of ``l`` epochs left of ``S`` they make the share of the weights to
#: lose that is still in force, as numerator and denominator; 1 at l = S, 0 at l = 0.
SCHEDULES: dict[str, Callable[[int, int], tuple[int, int]]] = {
    "cubic": cubic,
    "late": late,
    "dense_first_half": dense_first_half,
}


def budget_schedule(
    epoch: int,
    total_epochs: int,
    initial_budget: int,
    target_budget: int,
    warmup: int = 0,
    final: int = 0,
    curve: str = "cubic",
) -> int:
    """Number of non-zero delta weights in force during one epoch; falls from initial to target.

    ``V(e) = V1 + (V0 - V1) * c(E - f - e, E - w - f)`` for ``w < e <= E - f``, rounded down, with c
    of :data:`SCHEDULES`; ``V0`` for ``e <= w``, ``V1`` for ``e > E - f``. With ``final=1`` the last
    epoch, E - 1, reaches the target exactly; with ``final=0``, as published, it ends just above.

    Args:
        epoch: e, from 0.
        total_epochs: E.
        initial_budget: V0, in weights.
        target_budget: V1, in weights.
        warmup: w, epochs that keep the initial budget.
        final: f, epochs that keep the target budget.
        curve: a name in :data:`SCHEDULES`.

    Raises:
        ValueError: on an unknown curve, on negative values, or when warm-up and final leave no
            epoch in between.
    """
    if curve not in SCHEDULES:
        raise ValueError(f"unknown schedule {curve!r}; choose one of {', '.join(SCHEDULES)}")
    if total_epochs < 1 or epoch < 0 or warmup < 0 or final < 0:
        raise ValueError(
            "total_epochs must be positive and epoch, warmup and final not negative, got "
            f"total_epochs={total_epochs}, epoch={epoch}, warmup={warmup}, final={final}"
        )
    if min(initial_budget, target_budget) < 0:
        raise ValueError(f"budgets must not be negative, got {initial_budget}, {target_budget}")
    span = total_epochs - warmup - final
    if span < 1:
        raise ValueError(
            f"the schedule of {total_epochs} epochs is shorter than its warm-up ({warmup}) and "
            f"final epochs ({final}) together; train longer or lower them"
        )
    if epoch <= warmup:
        return math.floor(initial_budget)
    if epoch > total_epochs - final:
        return math.floor(target_budget)
    share, whole = SCHEDULES[curve](total_epochs - final - epoch, span)
    return math.floor(target_budget + (initial_budget - target_budget) * share / whole)
