"""The learnable part of one adapted matrix."""

import math

import torch
from torch import Tensor, nn

from ..functional import KERNELS, SPARSIFIERS, Bracket, DeltaRule


class SnellaAdapter(nn.Module):
    """Sparse nonlinear low-rank adaptation of one matrix (SNELLA, arXiv 2510.24037).

    With ``kernel='linear'`` and ``sparsifier='none'`` it is LoRA: Q starts at zero then.

    Two factor tensors P (``in_factors``) and Q (``out_factors``) are merged by a kernel into a
    dense weight change K of the matrix's shape; only the largest ``1 - sparsity`` of its entries
    take part:

    ``delta = sparsify(K(P, Q, alpha, gamma, beta), sparsity)``

    ``sparsity`` is a float64 buffer, so it travels with ``state_dict``; it is set from outside
    when matrices compete for the budget (:class:`snella_seg.hooks.SparsityAllocationHook`).

    Args:
        in_features: columns of the matrix.
        out_features: rows of the matrix.
        rank: r, over all heads; divisible by ``heads``.
        heads: H, number of distances with alternating sign.
        kernel: ``'mixed'`` (SNELLA), ``'distance'`` (SNELL) or ``'linear'`` (LoRA).
        sparsifier: ``'weighted'``, ``'soft'``, ``'hard'`` or ``'none'``, see
            :func:`snella_seg.functional.sparsify`.
        initial_sparsity: share of weights left out at the start, in [0, 1).
        scale: weight of each head in the distance kernel, or lora_alpha / r of the linear one;
            positive.
        spread: half-width of the uniform draw that each pair of heads starts from together, on top
            of the published start; 0 is the published start alone. Distances of a pair cancel at
            first, so K starts as small, but from points that lie apart: directions between them
            differ, and go on differing while the factors move.
        dropout: probability with which an input of the delta's product is left out in training;
            the published runs use 0.1. Costs a second product per layer.
        drop_path: probability with which an entry of the first dimension (an image; in Swin's
            attention a window) does without the delta in training; the published runs use 0.1.
            Neither acts where a weight is read instead of its module being called.

    Shapes: ``in_factors`` (H, in, r/H), ``out_factors`` (H, out, r/H), scalars (1,).

    Raises:
        ValueError: on an argument that makes no sense; the message names the choices.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int = 32,
        heads: int = 2,
        kernel: str = "mixed",
        sparsifier: str = "weighted",
        initial_sparsity: float = 0.0,
        scale: float = 0.1,
        spread: float = 0.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if kernel not in KERNELS:
            raise ValueError(f"unknown kernel {kernel!r}; choose one of {', '.join(KERNELS)}")
        if sparsifier not in SPARSIFIERS:
            raise ValueError(
                f"unknown sparsifier {sparsifier!r}; choose one of {', '.join(SPARSIFIERS)}"
            )
        if heads < 1 or rank < 1 or rank % heads:
            raise ValueError(
                f"rank must be a positive multiple of heads, got rank={rank} with heads={heads}"
            )
        if not 0.0 <= initial_sparsity < 1.0:
            raise ValueError(f"initial_sparsity must lie in [0, 1), got {initial_sparsity}")
        if sparsifier == "none" and initial_sparsity:
            raise ValueError(
                f"sparsifier 'none' keeps all weights, got initial_sparsity {initial_sparsity}"
            )
        if not (scale > 0.0 and math.isfinite(scale)):
            raise ValueError(f"scale must be a positive number, got {scale}")
        if spread and kernel == "linear":
            raise ValueError("spread is for kernels of distances, kernel='linear' has none")
        if not (spread >= 0.0 and math.isfinite(spread)):
            raise ValueError(f"spread must be a number and not negative, got {spread}")
        for name, value in (("dropout", dropout), ("drop_path", drop_path)):
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), got {value}")
        self.spread, self.dropout, self.drop_path = spread, dropout, drop_path
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.rule = DeltaRule(kernel, sparsifier, scale)
        self.bracket = Bracket()
        self.in_factors = nn.Parameter(torch.empty(heads, in_features, rank // heads))
        self.out_factors = nn.Parameter(torch.empty(heads, out_features, rank // heads))
        self.scalar_names = tuple(KERNELS[kernel][1])
        for name in self.scalar_names:
            self.register_parameter(name, nn.Parameter(torch.empty(1)))
        self.register_buffer("sparsity", torch.tensor(initial_sparsity, dtype=torch.float64))
        self._sparsity_read = (None, 0.0)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the factors uniformly in +-1/sqrt(features * r/H); scalars start as published.

        As LoRA: P in +-1/sqrt(features), Q zero.
        """
        for factors in self.factors:
            nn.init.kaiming_uniform_(factors, a=math.sqrt(5))
            if self.spread:
                pairs = len(factors) // 2
                shared = torch.empty_like(factors[:pairs]).uniform_(-self.spread, self.spread)
                with torch.no_grad():
                    factors[: 2 * pairs] += shared.repeat_interleave(2, dim=0)
        if (self.rule.kernel, self.rule.sparsifier) == ("linear", "none"):
            nn.init.uniform_(self.in_factors, -(self.in_features**-0.5), self.in_features**-0.5)
            nn.init.zeros_(self.out_factors)
        for name, value in KERNELS[self.rule.kernel][1].items():
            nn.init.constant_(getattr(self, name), value)

    @property
    def factors(self) -> tuple[nn.Parameter, nn.Parameter]:
        """The two factor tensors, P and Q."""
        return self.in_factors, self.out_factors

    @property
    def params(self) -> tuple[nn.Parameter, ...]:
        """All learnable tensors, in the order in which the kernel takes them."""
        return (*self.factors, *(getattr(self, name) for name in self.scalar_names))

    @property
    def size(self) -> int:
        """Number of weights of the adapted matrix."""
        return self.in_features * self.out_features

    def current_sparsity(self) -> float:
        """The sparsity in force, read from its buffer only after that has changed."""
        version = (self.sparsity.data_ptr(), self.sparsity._version)
        if self._sparsity_read[0] != version:
            self._sparsity_read = (version, float(self.sparsity))
        return self._sparsity_read[1]

    @property
    def num_nonzero(self) -> int:
        """Number of weights that take part, as allocated."""
        return round((1.0 - self.current_sparsity()) * self.size)

    def set_num_nonzero(self, count: int) -> None:
        """Let ``count`` of the weights take part, 0 <= count <= size."""
        if not 0 <= count <= self.size:
            raise ValueError(f"count must lie in [0, {self.size}], got {count}")
        if self.rule.sparsifier == "none" and count < self.size:
            raise ValueError(f"sparsifier 'none' keeps all {self.size} weights, got count {count}")
        self.sparsity.fill_(1.0 - count / self.size)

    def delta_weight(self) -> Tensor:
        """Return the sparse delta, shape (out, in), differentiable in the factors and scalars."""
        return self.rule(self.params, self.current_sparsity())[0]

    def _apply(self, fn, recurse=True):
        exact = self.sparsity
        super()._apply(fn, recurse)
        if self.sparsity.dtype != exact.dtype:  # .half() and the like must not round it
            self.sparsity = exact.to(self.sparsity.device)
        return self

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"kernel={self.rule.kernel!r}, sparsifier={self.rule.sparsifier!r}, "
            f"sparsity={self.current_sparsity():.4f}"
        )
