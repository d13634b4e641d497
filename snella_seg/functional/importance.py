"""How much each matrix matters: smoothed sensitivity and its uncertainty (as in AdaLoRA)."""

from torch import Tensor


def ema_importance_(
    sensitivity: Tensor, average: Tensor, uncertainty: Tensor, beta1: float, beta2: float
) -> tuple[Tensor, Tensor]:
    """:func:`ema_importance` in place: all three tensors are overwritten."""
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0.0 <= beta <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], got {beta}")
    sensitivity.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    average.lerp_(sensitivity, 1 - beta1)
    uncertainty.lerp_(sensitivity.sub_(average).abs_(), 1 - beta2)
    return average, uncertainty


def ema_importance(
    sensitivity: Tensor, average: Tensor, uncertainty: Tensor, beta1: float, beta2: float
) -> tuple[Tensor, Tensor]:
    """Update the running average and uncertainty of a sensitivity ``I = |p * grad p|``.

    ``average' = beta1 * average + (1 - beta1) * I``
    ``uncertainty' = beta2 * uncertainty + (1 - beta2) * |I - average'|``

    Sensitivities that are not finite count as 0.

    Args:
        sensitivity: I, any shape.
        average, uncertainty: running values of the same shape; not changed.
        beta1, beta2: decay rates in [0, 1].

    Returns:
        The new average and uncertainty.

    Raises:
        ValueError: on a decay rate outside [0, 1].
    """
    return ema_importance_(sensitivity.clone(), average.clone(), uncertainty.clone(), beta1, beta2)


def importance_score(average: Tensor, uncertainty: Tensor) -> Tensor:
    """Score of one factor tensor: the mean of ``average * uncertainty``, a 0-dim tensor.

    The score of a matrix is the sum of this over its two factor tensors.
    """
    return (average * uncertainty).mean()
