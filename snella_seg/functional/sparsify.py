"""Competition between the weights of one matrix: only the largest ``1 - sparsity`` take part.

A sparsifier gives the factor beside K, which the gradient holds constant: ``delta = K * factor``.
One of your own is a function and a line, ``register_sparsifier(name, function)``.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .threshold import quantile_threshold


def weighted_factor(dense: Tensor, threshold: Tensor) -> Tensor:
    """``|K| * 1[|K| > t]``: the reference implementation, hence the published figures."""
    magnitude = dense.abs()
    return magnitude * (magnitude > threshold)


def soft_factor(dense: Tensor, threshold: Tensor) -> Tensor:
    """``max(|K| - t, 0)``: SNELL, arXiv 2411.01800, equation 5."""
    return (dense.abs() - threshold).clamp_min(0)


def hard_factor(dense: Tensor, threshold: Tensor) -> Tensor:
    """``1[|K| > t]``."""
    return (dense.abs() > threshold).to(dense.dtype)


def full_factor(dense: Tensor, threshold: Tensor) -> Tensor:
    """1 everywhere: all of K takes part, there is no competition."""
    return torch.ones_like(dense)


class Sparsifier(NamedTuple):
    """A registered sparsifier.

    Attributes:
        factor: ``factor(dense, threshold) -> factor``, all of one shape but the 0-dim threshold.
        competes: whether it looks at the threshold at all; without, there is no sparsity to set.
        elementwise: whether an entry of the factor depends on that entry of K and the threshold
            alone, so that the delta may be made of parts.
        gradient: what the gradient of K is multiplied with instead of the factor; None for the
            factor itself. With one that does not vanish where the factor does, weights that are
            left out go on learning (straight-through, arXiv 1308.3432).
        relative: whether the factor, and the gradient's, is divided by :func:`unit_of` K.
    """

    factor: Callable[[Tensor, Tensor], Tensor]
    competes: bool
    elementwise: bool
    gradient: Callable[[Tensor, Tensor], Tensor] | None = None
    relative: bool = False


#: Name -> sparsifier; :func:`register_sparsifier` adds to it.
SPARSIFIERS: dict[str, Sparsifier] = {}


def register_sparsifier(
    name: str,
    function: Callable[[Tensor, Tensor], Tensor],
    competes: bool = True,
    elementwise: bool | None = None,
    gradient: Callable[[Tensor, Tensor], Tensor] | None = None,
    relative: bool = False,
) -> None:
    """Let ``sparsifier=name`` stand for a function, in training and wherever deltas are made.

    Args:
        name: a new one.
        function: ``function(dense, threshold) -> factor`` with K and the factor of shape (out, in)
            and a 0-dim threshold. The gradient holds the factor constant, whatever it computes.
        competes: whether it looks at the threshold; False for one that lets all weights take part.
        elementwise: whether an entry of the factor depends on that entry of K and the threshold
            alone. Then large matrices are made in parts, which saves memory. None finds out on a
            small random matrix.
        gradient: ``gradient(dense, threshold)``, with which the gradient of K is multiplied; None
            for the factor itself; elementwise where the factor is.
        relative: whether both are divided by the root mean square of K, held constant as they are.

    Raises:
        ValueError: on a name that is taken, or a function that does not return K's shape.
    """
    if name in SPARSIFIERS and SPARSIFIERS[name].factor is not function:
        raise ValueError(f"a sparsifier {name!r} is registered already; choose another name")
    if elementwise is None:
        elementwise = _is_elementwise(function)
    SPARSIFIERS[name] = Sparsifier(function, competes, elementwise, gradient, relative)


def get_sparsifier(name: str) -> Sparsifier:
    """Look a sparsifier up.

    Raises:
        ValueError: when there is none of that name; the known ones are listed.
    """
    if name not in SPARSIFIERS:
        raise ValueError(f"unknown sparsifier {name!r}; choose one of {', '.join(SPARSIFIERS)}")
    return SPARSIFIERS[name]


@torch.no_grad()
def _is_elementwise(function: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Whether parts of a factor, made alone, are those of the whole; and check its shape."""
    dense = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    threshold = dense.abs().median()
    whole = function(dense, threshold)
    if whole.shape != dense.shape:
        raise ValueError(
            f"a sparsifier must return a factor of K's shape, here (5, 7), got {tuple(whole.shape)}"
        )
    rows = torch.cat([function(part, threshold) for part in dense.split(2)])
    columns = torch.cat([function(part, threshold) for part in dense.split(3, 1)], 1)
    return all(torch.allclose(parts, whole, rtol=1e-9, atol=0) for parts in (rows, columns))


register_sparsifier("weighted", weighted_factor)
register_sparsifier("soft", soft_factor)
register_sparsifier("hard", hard_factor)
register_sparsifier("none", full_factor, competes=False)
register_sparsifier("normalised", weighted_factor, relative=True)
register_sparsifier(
    "normalised_through", weighted_factor, gradient=lambda k, t: k.abs(), relative=True
)


def unit_of(dense: Tensor) -> Tensor:
    """The root mean square of K, 0-dim; the least positive number where K is zero."""
    size = torch.linalg.vector_norm(dense) / dense.numel() ** 0.5
    return size.clamp_min(torch.finfo(dense.dtype).tiny)


def apply_threshold(dense: Tensor, threshold: Tensor, mode: str) -> Tensor:
    """Keep the entries of K whose magnitude exceeds ``threshold``; see :func:`sparsify`."""
    sparsifier = get_sparsifier(mode)
    with torch.no_grad():
        factor = sparsifier.factor(dense, threshold)
        through = sparsifier.gradient and sparsifier.gradient(dense, threshold)
        if sparsifier.relative:
            unit = unit_of(dense)
            factor = factor / unit
            through = through if through is None else through / unit
    if through is None:
        return dense * factor
    return dense.detach() * factor + (dense - dense.detach()) * through


def sparsify(dense: Tensor, sparsity: float, mode: str = "weighted") -> Tensor:
    """Zero out the small entries of a dense weight change K.

    With t the ``sparsity``-quantile of ``|K|`` (:func:`quantile_threshold`):

    - ``weighted``: ``K * |K| * 1[|K| > t]`` (the reference implementation, hence the published
      figures; near identity at the start since K is small)
    - ``soft``: ``K * max(|K| - t, 0)`` (SNELL, equation 5)
    - ``hard``: ``K * 1[|K| > t]``
    - ``none``: K, all of it; there is no competition
    - ``normalised``: ``weighted`` divided by the root mean square of K over the matrix, so that the
      delta grows with K and not with its square
    - ``normalised_through``: the same, but the gradient of K is that of sparsity 0, so that weights
      which are left out go on learning (straight-through, arXiv 1308.3432)

    The factor beside K is a constant in the gradient in all of them. Ties at t fall out.

    Args:
        dense: K, shape (out, in).
        sparsity: share of weights that take no part, in [0, 1); 0 where none compete.
        mode: a name in :data:`SPARSIFIERS`.

    Returns:
        Tensor of the same shape and dtype.

    Raises:
        ValueError: on a sparsity outside [0, 1), an unknown mode, or a sparsity with ``none``.
    """
    if not 0.0 <= float(sparsity) < 1.0:
        raise ValueError(f"sparsity must lie in [0, 1), got {float(sparsity)}")
    if not get_sparsifier(mode).competes and sparsity:
        raise ValueError(f"sparsifier {mode!r} keeps all weights, got sparsity {float(sparsity)}")
    return apply_threshold(dense, quantile_threshold(dense, sparsity), mode)
