"""The gradient by a weight, ``x^T g``, estimated from a part of the tokens (rows of x and g).

Token i takes part with probability ``p_i = min(1, c |x_i| |g_i|)``, with c such that a set number
of them does, and then counts ``1 / p_i`` times: the mean over draws is the exact gradient, and of
all such probabilities these give the least variance (Drineas et al., SIAM J. Comput. 36(1), 2006).
So the largest take part for certain, and count once. One number decides the draw (systematic
sampling; Madow, Ann. Math. Stat. 20, 1949): tokens lie side by side on a line, each as long as its
probability, and those are taken on which the points ``offset, offset + 1, ...`` fall. Neighbours
are seldom taken together, which lowers the variance where they are alike, as in an image.
"""

import math
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor

from ..functional.delta import HALF

#: By how much draws of successive processes lie apart: the golden ratio spreads any number of them.
_APART = (math.sqrt(5.0) - 1.0) / 2.0
#: Size, in parts of the mean, below which a token is drawn as if it had that.
LEAST = 1e-9


@dataclass(frozen=True)
class TokenSample:
    """A draw of tokens.

    Args:
        share: of the tokens that take part, in (0, 1].
        offset: the draw, in [0, 1); a tensor (0-dim) where it lies on a device.
    """

    share: float = 1.0
    offset: float | Tensor = 0.0

    @classmethod
    def draw(cls, share: float) -> "TokenSample":
        """Draw one from torch's default generator; where all tokens take part, nothing is drawn.

        Raises:
            ValueError: when the share lies outside (0, 1].
        """
        if not 0.0 < share <= 1.0:
            raise ValueError(f"token_share must lie in (0, 1], got {share}")
        return cls(share, float(torch.rand(())) if share < 1.0 else 0.0)

    def take(self, x: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor] | None:
        """The rows of x (M, in) that take part, times their weights, and those of grad_y (M, out).

        Processes that train together take other ones at the same offset. Does not wait for the
        device. None where all take part.
        """
        count = math.ceil(self.share * len(x))
        if count >= len(x):
            return None
        chosen, weights = choose(_norms(x) * _norms(grad_y), count, _own(self.offset))
        return x[chosen].mul_(weights[:, None].to(x.dtype)), grad_y[chosen]


def _norms(rows: Tensor) -> Tensor:
    dtype = torch.float32 if rows.dtype in HALF else rows.dtype
    return torch.linalg.vector_norm(rows, dim=1, dtype=dtype).double()


def _own(offset: float | Tensor) -> float | Tensor:
    """The offset of this process."""
    parallel = torch.distributed.is_available() and torch.distributed.is_initialized()
    return (offset + torch.distributed.get_rank() * _APART) % 1.0 if parallel else offset


def choose(sizes: Tensor, count: int, offset: float | Tensor) -> tuple[Tensor, Tensor]:
    """Choose ``count`` of the entries of ``sizes`` (M,), which are not negative, by their size.

    Args:
        sizes: to which the probabilities are proportional, as far as they are below 1.
        count: how many, in [1, M).
        offset: the draw, in [0, 1).

    Returns:
        Their indices and the inverses of their probabilities, both (count,).
    """
    shares = inclusion_probabilities(sizes, count)
    ends = shares.cumsum(0)
    points = torch.arange(count, dtype=torch.float64, device=sizes.device) + offset
    chosen = torch.searchsorted(ends * (count / ends[-1]), points, right=True)
    chosen = chosen.clamp_(max=len(sizes) - 1)  # rounding, or sizes that are not finite
    return chosen, shares[chosen].reciprocal()


def inclusion_probabilities(sizes: Tensor, count: int) -> Tensor:
    """``min(1, c * sizes)`` with the c by which they sum to ``count``; nothing counts as less than
    :data:`LEAST` of the mean."""
    mean = sizes.mean()
    sizes = sizes.clamp(min=torch.where(mean == 0, torch.ones_like(mean), mean * LEAST))
    # With the n largest at 1, c = (count - n) / the sum of the others: the first n by which none of
    # the others exceeds 1.
    ordered = sizes.sort(descending=True).values
    others = ordered.flip(0).cumsum(0).flip(0)[:count]
    rates = torch.arange(count, 0, -1, dtype=sizes.dtype, device=sizes.device) / others
    fits = rates * ordered[:count] <= 1.0
    return (sizes * rates[fits.to(torch.uint8).argmax()]).clamp(max=1.0)
