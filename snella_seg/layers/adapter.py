"""The learnable part of one adapted matrix."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import Accumulator, Bracket, DeltaBlock
from ..engine.low_rank import is_low_rank
from ..functional import DeltaRule, get_kernel, get_sparsifier
from .typed_options import typed_options

#: Half-width of the uniform draw of Q where Q = 0 would never learn.
SMALL = 3e-3


class Adapter(nn.Module):
    """What every adapter of one matrix has: learnable tensors, a rule, a share of the budget.

    A subclass sets ``rule`` and ``params``, from which ``rule(params, sparsity)`` makes the delta
    and its threshold; any callable of that kind will do, with :class:`DeltaRule`'s signature.
    ``sparsity`` is a float64 buffer, so it travels with ``state_dict``; it is set from outside when
    matrices compete for the budget (:class:`snella_seg.hooks.SparsityAllocationHook`).

    Args:
        in_features: columns of the matrix.
        out_features: rows of the matrix.
        initial_sparsity: share of weights left out at the start, in [0, 1).
        dropout: probability with which an input of the delta's product is left out in training;
            the published runs use 0.1. Costs a second product per layer.
        drop_path: probability with which an entry of the first dimension (an image; in Swin's
            attention a window) does without the delta in training; the published runs use 0.1.
            Neither acts where a weight is read instead of its module being called.

    Raises:
        ValueError: on values out of range.
    """

    rule: DeltaRule
    #: Whether it computes the product of its rows by itself (:meth:`product`) in training.
    computes_product = False
    #: Whether its delta can be made without the weight that it changes.
    stands_alone = True
    #: Share of the tokens that make its gradient in training; whether, for now, all do nonetheless.
    token_share, takes_all_tokens = 1.0, False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        initial_sparsity: float = 0.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        shares = dict(initial_sparsity=initial_sparsity, dropout=dropout, drop_path=drop_path)
        for name, value in shares.items():
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), got {value}")
        self.in_features, self.out_features = in_features, out_features
        self.dropout, self.drop_path = dropout, drop_path
        self.bracket = Bracket()
        self.accumulator: Accumulator | None = None
        self.sparsity: Tensor
        self.register_buffer("sparsity", torch.tensor(initial_sparsity, dtype=torch.float64))
        self._sparsity_read: tuple[tuple[int, int] | None, float] = (None, 0.0)

    @classmethod
    def for_shapes(
        cls, shapes: Mapping[str, tuple[int, int]], **options: Any
    ) -> dict[str, "Adapter"]:
        """Make the adapters of several matrices, name -> (out, in), which may share something."""
        if not shapes:
            cls(1, 1, **options)  # refuses bad options where nothing is adapted, too
        return {name: cls(columns, rows, **options) for name, (rows, columns) in shapes.items()}

    @property
    def params(self) -> tuple[Tensor, ...]:
        """All learnable tensors, in the order in which the rule takes them."""
        raise NotImplementedError

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``x`` (..., in) times the adapted rows, for adapters that compute that by themselves.

        Args:
            x: the input.
            weight: the frozen rows, (out, in).
            bias: theirs, (out,), or None.
        """
        raise NotImplementedError

    def see(self, weight: Tensor) -> None:
        """Be told the frozen rows, (out, in), before the delta is made; most need not know."""

    @property
    def factors(self) -> tuple[nn.Parameter, ...]:
        """The tensors whose sensitivity says how much the matrix matters."""
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """The options that decide what the values mean, for files; arguments of the class."""
        raise NotImplementedError

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
        """Let ``count`` of the weights take part, 0 <= count <= size.

        Raises:
            ValueError: on a count out of range, or fewer weights where none compete.
        """
        if not 0 <= count <= self.size:
            raise ValueError(f"count must lie in [0, {self.size}], got {count}")
        if not self.rule.competes and count < self.size:
            raise ValueError(
                f"sparsifier {self.rule.sparsifier!r} keeps all {self.size} weights, got count "
                f"{count}"
            )
        self.sparsity.fill_(1.0 - count / self.size)

    def delta_weight(self) -> Tensor:
        """Return the sparse delta, shape (out, in), differentiable in the parameters."""
        return self.rule(self.params, self.current_sparsity())[0]

    def delta_block(self, start: int = 0, stop: int | None = None) -> DeltaBlock:
        """The delta as the engine takes it, for the rows ``start:stop`` of a weight."""
        stop = start + self.out_features if stop is None else stop
        kept = self.accumulator if torch.is_grad_enabled() else None  # validation may swap factors
        recipe = (self.rule, self.current_sparsity(), self.params, self.bracket, kept)
        return DeltaBlock(start, stop, *recipe)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Adapter":
        exact = self.sparsity
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.sparsity.dtype != exact.dtype:  # .half() and the like must not round it
            self.sparsity = exact.to(self.sparsity.device)
        return self

    def extra_repr(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options().items())
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, {options}, "
            f"sparsity={self.current_sparsity():.4f}"
        )


class SnellaAdapter(Adapter):
    """Sparse nonlinear low-rank adaptation of one matrix (SNELLA, arXiv 2510.24037).

    With ``kernel='linear'`` and ``sparsifier='none'`` it is LoRA: Q starts at zero then.

    Two factor tensors P (``in_factors``) and Q (``out_factors``) are merged by a kernel into a
    dense weight change K of the matrix's shape; only the largest ``1 - sparsity`` of its entries
    take part:

    ``delta = sparsify(K(P, Q, alpha, gamma, beta), sparsity)``

    Args:
        in_features: columns of the matrix.
        out_features: rows of the matrix.
        rank: r, over all heads; divisible by ``heads``.
        heads: H, number of distances with alternating sign.
        kernel: ``'mixed'`` (SNELLA), ``'distance'`` (SNELL), ``'linear'`` (LoRA), or another that
            was registered (:func:`snella_seg.functional.register_kernel`).
        sparsifier: ``'weighted'``, ``'soft'``, ``'hard'``, ``'none'``, or another that was
            registered, see :func:`snella_seg.functional.sparsify`.
        initial_sparsity: share of weights left out at the start, in [0, 1).
        scale: weight of each head in the distance kernel, or lora_alpha / r of the linear one;
            positive.
        spread: half-width of the uniform draw that each pair of heads starts from together, on top
            of the published start; 0 is the published start alone. Distances of a pair cancel at
            first, so K starts as small, but from points that lie apart: directions between them
            differ, and go on differing while the factors move.
        dropout, drop_path: see :class:`Adapter`.
        token_share: share of the tokens that make the delta's gradient in training, in (0, 1], by
            lot and right on the mean (:mod:`snella_seg.engine.sampling`). Not for LoRA; without
            effect where a weight is read instead of its module being called.

    Shapes: ``in_factors`` (H, in, r/H), ``out_factors`` (H, out, r/H), scalars (1,).

    Raises:
        ValueError: on an argument that makes no sense; the message names the choices.
    """

    @typed_options
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
        token_share: float = 1.0,
    ) -> None:
        super().__init__(in_features, out_features, initial_sparsity, dropout, drop_path)
        self.rule = DeltaRule(kernel, sparsifier, scale)
        if heads < 1 or rank < 1 or rank % heads:
            raise ValueError(
                f"rank must be a positive multiple of heads, got rank={rank} with heads={heads}"
            )
        if not self.rule.competes and initial_sparsity:
            raise ValueError(
                f"sparsifier {sparsifier!r} keeps all weights, got initial_sparsity "
                f"{initial_sparsity}"
            )
        if not (scale > 0.0 and math.isfinite(scale)):
            raise ValueError(f"scale must be a positive number, got {scale}")
        if spread and kernel == "linear":
            raise ValueError("spread is for kernels of distances, kernel='linear' has none")
        if not (spread >= 0.0 and math.isfinite(spread)):
            raise ValueError(f"spread must be a number and not negative, got {spread}")
        if not 0.0 < token_share <= 1.0 or (token_share < 1.0 and is_low_rank(self.rule)):
            raise ValueError(f"token_share must lie in (0, 1], 1 for LoRA, got {token_share}")
        self.rank, self.spread, self.token_share = rank, spread, token_share
        self.in_factors = nn.Parameter(torch.empty(heads, in_features, rank // heads))
        self.out_factors = nn.Parameter(torch.empty(heads, out_features, rank // heads))
        self.scalar_names = tuple(get_kernel(kernel).scalars)
        for name in self.scalar_names:
            self.register_parameter(name, nn.Parameter(torch.empty(1)))
        self.reset_parameters()

    @classmethod
    def for_shapes(
        cls, shapes: Mapping[str, tuple[int, int]], **options: Any
    ) -> dict[str, Adapter]:
        """As of :class:`Adapter`.

        Raises:
            ValueError: on a rank above the smaller side of every matrix, which adds nothing.
        """
        rank, largest = options.get("rank"), max(map(min, shapes.values()), default=0)
        if isinstance(rank, int) and 0 < largest < rank:
            raise ValueError(
                f"rank={rank} is above the smaller side of every adapted matrix: the largest "
                f"sensible one is {largest}"
            )
        return super().for_shapes(shapes, **options)

    def reset_parameters(self) -> None:
        """Draw the factors uniformly in +-1/sqrt(features * r/H); scalars start as published.

        As LoRA: P in +-1/sqrt(features), Q zero. Linear kernels with a normalised sparsifier start
        like it, with Q in +-:data:`SMALL`, since at K = 0 they would not learn.
        """
        for factors in self.factors:
            nn.init.kaiming_uniform_(factors, a=math.sqrt(5))
            if self.spread:
                pairs = len(factors) // 2
                shared = torch.empty_like(factors[:pairs]).uniform_(-self.spread, self.spread)
                with torch.no_grad():
                    factors[: 2 * pairs] += shared.repeat_interleave(2, dim=0)
        sparsifier = get_sparsifier(self.rule.sparsifier)
        if self.rule.kernel == "linear" and (sparsifier.relative or not sparsifier.competes):
            nn.init.uniform_(self.in_factors, -(self.in_features**-0.5), self.in_features**-0.5)
            nn.init.zeros_(self.out_factors)
            if sparsifier.relative:
                nn.init.uniform_(self.out_factors, -SMALL, SMALL)
        for name, value in get_kernel(self.rule.kernel).scalars.items():
            nn.init.constant_(getattr(self, name), value)

    @property
    def factors(self) -> tuple[nn.Parameter, nn.Parameter]:
        """The two factor tensors, P and Q."""
        return self.in_factors, self.out_factors

    @property
    def params(self) -> tuple[Tensor, ...]:
        """P, Q and the scalars, in the order in which the kernel takes them."""
        return (*self.factors, *(getattr(self, name) for name in self.scalar_names))

    def options(self) -> dict[str, Any]:
        """Rank, heads, kernel, sparsifier and scale."""
        return {
            "rank": self.rank,
            "heads": len(self.in_factors),
            "kernel": self.rule.kernel,
            "sparsifier": self.rule.sparsifier,
            "scale": self.rule.scale,
        }
