"""Whether what is made fast is what the definition says, on this machine, before it is relied upon.

No GPU is like the next, nor are compilers: at the first use on a device the Triton kernels, and on
a CPU the compiled library, are compared with the plain rule, for each way of making deltas. Where
they do not compile, or differ, the plain form is used.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..functional import DeltaRule
from ..functional.kernels import get_kernel
from . import gpu, native
from .columns import Columns
from .threshold_search import Bracket

#: Shapes (out, in) that are looked at: several tiles with rests, less than one tile, and sides that
#: are multiples of 16, as of most models: for those compilers build other code.
SHAPES = ((130, 70), (33, 17), (144, 80))
#: Heads and columns of a head; those of rank 32, so that nothing is compiled twice.
HEADS, COLUMNS = 2, 16
SPARSITY = 0.8
#: Error beyond that of the plain form in single precision, over the largest entry; and how near to
#: the threshold, over the largest K, a weight may fall on either side.
TOLERANCE, NEAR = 1e-5, 1e-5


@dataclass(frozen=True)
class Path:
    """A way to make deltas and to differentiate them.

    Args:
        make: ``make(params, rule, sparsity, base) -> (base + delta, state)``.
        backward: ``backward(params, rule, state, grad, base) -> (base + delta, gradients)``.
    """

    make: Callable[..., tuple[Tensor, tuple[Tensor | None, ...]]]
    backward: Callable[..., tuple[Tensor, tuple[Tensor | None, ...]]]


def _in_company(params: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """A matrix behind another of its shape."""
    return [tuple(p.flip(0) for p in params), params]


def _triton_make(
    params: tuple[Tensor, ...], rule: DeltaRule, sparsity: float, base: Tensor
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    bases = torch.stack([base - 1, base])
    made, states = gpu.launch_deltas(_in_company(params), rule, [0.5, sparsity], bases)
    alone, state = gpu.launch_delta(params, rule, sparsity, base, torch.empty_like(base))
    _require_same((made[1], *states[1]), (alone, *state))
    return alone, state


def _triton_backward(
    params: tuple[Tensor, ...],
    rule: DeltaRule,
    state: tuple[Tensor | None, ...],
    grad: Tensor,
    base: Tensor,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    states, grads = [state, state], torch.stack([grad + 1, grad])
    bases = torch.stack([base - 1, base])
    made = torch.empty_like(bases)
    found = gpu.launch_backwards(_in_company(params), rule, states, grads, None, bases, made)
    alone = gpu.launch_backward(params, rule, state, grad, None, base, torch.empty_like(base))
    _require_same(found[1], alone)
    return made[1], alone


def _require_same(company: Sequence[Tensor | None], alone: Sequence[Tensor | None]) -> None:
    if not all(map(_same, company, alone)):
        raise RuntimeError("other bits in company than alone")


TRITON = Path(_triton_make, _triton_backward)


def _native_make(
    params: tuple[Tensor, ...], rule: DeltaRule, sparsity: float, base: Tensor
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    out = torch.empty_like(base)
    return out, native.write_delta(params, rule, sparsity, Bracket(), out, base)


def _native_backward(
    params: tuple[Tensor, ...],
    rule: DeltaRule,
    state: tuple[Tensor | None, ...],
    grad: Tensor,
    base: Tensor,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    out, matrix = torch.empty_like(base), native.NativeMatrix(params, rule, state)

    def product(
        columns: Columns, factor: Tensor | None, wanted: Any = None, out: Tensor | None = None
    ) -> Tensor:
        """The gradient as a product, with the unit matrix."""
        return native.sampled_product(
            grad.T,
            torch.eye(grad.shape[1], dtype=grad.dtype, device=grad.device)[:, columns],
            wanted,
            out,
        )

    matrix.again(slice(0, base.shape[1]), out, base, 1.0, product)
    return out, matrix.gradients((True,) * len(params))


NATIVE = Path(_native_make, _native_backward)


def example(
    rule: DeltaRule, shape: tuple[int, int], device: torch.device
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Parameters of one matrix and a gradient by its delta, the same at every call."""
    generator = torch.Generator().manual_seed(shape[0])
    sizes = [(HEADS, shape[1], COLUMNS), (HEADS, shape[0], COLUMNS), shape]
    plain = partial(torch.empty, dtype=torch.float32, device="cpu")  # whatever the defaults are
    *params, grad = (plain(size).normal_(generator=generator) for size in sizes)
    # apart from the usual starts, at which a slip could go unnoticed
    scalars = [
        plain(1).fill_(value + 0.1 * (i - 1))
        for i, value in enumerate(get_kernel(rule.kernel).scalars.values())
    ]
    return tuple(p.to(device) for p in (*params, *scalars)), grad.to(device)


def disagreement(path: Path, rule: DeltaRule, device: torch.device) -> str | None:
    """What a path does otherwise than the rule itself, in a few words; None where nothing.

    Looked at on small matrices: values and gradients against the rule's, whether forward and
    backward make the same bits, whether weights that take no part have a gradient, and whether
    all is the same twice. Whatever the path raises is what it does otherwise.
    """
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        try:
            for shape in SHAPES:
                found = _difference(path, rule, shape, device)
                if found:
                    return f"{found} ({shape[0]} x {shape[1]})"
        except torch.cuda.OutOfMemoryError:
            raise  # says nothing of the path
        except Exception as error:  # of whatever kind: a compiler's, a driver's
            return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def _difference(
    path: Path, rule: DeltaRule, shape: tuple[int, int], device: torch.device
) -> str | None:
    params, grad = example(rule, shape, device)
    zero = torch.zeros_like(grad)

    def run(gradient: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
        made, state = path.make(params, rule, SPARSITY, zero)
        return made, *path.backward(params, rule, state, gradient, zero)

    wide = tuple(p.double() for p in params)
    dense = rule.dense(wide)
    threshold = rule.threshold(dense, SPARSITY)
    sure = (dense.abs() - threshold).abs() > NEAR * dense.abs().max()
    grad = grad * sure
    made, again, grads = run(grad)
    if not torch.equal(made, again):
        return "backward makes another delta than forward"
    if rule.competes and any(_moved(g) for g in run((made == 0).to(grad.dtype))[2]):
        return "weights that take no part have a gradient"
    if not all(_same(a, b) for a, b in zip((made, *grads), _flat(run(grad)), strict=True)):
        return "not the same bits twice"
    exact, rough = (_plain(rule, p, grad) for p in (wide, params))
    names = ("the delta", *(f"the gradient of {n}" for n in _names(rule)))
    for name, found, near, right in zip(names, (made, *grads), rough, exact, strict=True):
        if found is None:
            return f"{name} is missing"
        keep = sure if name == "the delta" else torch.ones_like(right, dtype=torch.bool)
        error, allowed = ((t.double() - right)[keep].abs().max() for t in (found, near))
        size = right.abs().max().clamp_min(0.1 if right.numel() == 1 else 0.0)
        if not bool(error <= 2 * allowed + TOLERANCE * size):
            return f"{name} is off by {float(error):.1e}, of {float(size):.1e}"
    return None


def _names(rule: DeltaRule) -> tuple[str, ...]:
    return ("in_factors", "out_factors", *get_kernel(rule.kernel).scalars)


def _plain(rule: DeltaRule, params: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor, ...]:
    """Delta and gradients by the definition."""
    with torch.enable_grad():
        leaves = tuple(p.detach().requires_grad_() for p in params)
        delta, _ = rule(leaves, SPARSITY)
        return delta.detach(), *torch.autograd.grad(delta, leaves, grad.to(delta.dtype))


def _flat(run: tuple[Tensor, Tensor, tuple[Tensor | None, ...]]) -> tuple[Tensor | None, ...]:
    return run[0], *run[2]


def _moved(grad: Tensor | None) -> bool:
    return grad is not None and bool(grad.any())


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)


#: Device and rule -> why the Triton kernels are not used there; None where they are.
_REASONS: dict[tuple[torch.device, DeltaRule], str | None] = {}


def triton_reason(rule: DeltaRule, device: torch.device) -> str | None:
    """Why the Triton kernels do not make this rule's deltas on a device; None where they do.

    Found out at the first call, which waits for the device, and told once in a warning.
    """
    key = (device, rule)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing() and key not in _REASONS:
        return "a CUDA graph is being captured; the kernels prove themselves in a step before"
    if key not in _REASONS:
        _REASONS[key] = disagreement(TRITON, rule, device)
        if _REASONS[key] is not None:
            warnings.warn(
                f"the Triton kernels are not used on {device} for {rule}: {_REASONS[key]}. The "
                "plain form makes these deltas, right but slower; `snella-seg doctor` tells more",
                stacklevel=2,
            )
    return _REASONS[key]


#: Rule -> why the compiled library is not used; None where it is.
_NATIVE_REASONS: dict[DeltaRule, str | None] = {}


def native_reason(rule: DeltaRule) -> str | None:
    """Why the compiled library does not make this rule's deltas on a CPU; None where it does.

    Found out at the first call, told in a warning where the library is there and errs.
    """
    try:
        native.library()
    except native.Unavailable as reason:
        return str(reason)
    if rule not in _NATIVE_REASONS:
        found = disagreement(NATIVE, rule, torch.device("cpu"))
        _NATIVE_REASONS[rule] = found
        if found is not None:
            warnings.warn(
                f"the compiled library is not used for {rule}: {found}. Plain torch makes these "
                "deltas, right but slower; SNELLA_NATIVE=0 silences this",
                stacklevel=2,
            )
    return _NATIVE_REASONS[rule]


def native_finding() -> tuple[str, bool]:
    """What makes the deltas of the distance kernels on a CPU, in words, and whether all is well."""
    try:
        native.library()
    except native.Unavailable as reason:
        return f"plain torch ({reason})", True
    rules = (DeltaRule(), DeltaRule("centred", "normalised"))
    wrong = [reason for reason in map(native_reason, rules) if reason is not None]
    if wrong:
        return f"plain torch (the compiled library errs: {wrong[0]})", False
    return "a library compiled here", True
