"""Matrices for the tests of the Triton kernels, and their plain form."""

import pytest
import torch

from snella_seg.engine.gpu import available
from snella_seg.engine.gpu.language import triton
from snella_seg.functional import DeltaRule

INTERPRETED = available(torch.device("cpu"))
needs_compiler = pytest.mark.skipif(
    triton is None or INTERPRETED, reason="needs Triton, and not in its interpreter"
)
RULES = [DeltaRule(), DeltaRule("centred", "normalised"), DeltaRule("distance", "soft")]


def make_params(outs, ins, heads, columns, kernel, device, dtype=torch.float32):
    generator = torch.Generator().manual_seed(outs * ins + heads)
    values = [torch.randn(heads, n, columns, generator=generator) for n in (ins, outs)]
    if kernel == "mixed":
        values += [torch.tensor([v]) for v in (0.9, 0.7, 0.05)]
    return tuple(v.to(device, dtype) for v in values)


def plain(params, rule, sparsity, grad, dtype):
    """Delta, threshold and gradients from the plain form, worked out in ``dtype``."""
    leaves = tuple(p.detach().to(dtype).requires_grad_() for p in params)
    delta, threshold = rule(leaves, sparsity)
    return delta.detach(), threshold, torch.autograd.grad(delta, leaves, grad.to(dtype))


def group_of(rule, device, count=3, outs=33, ins=17):
    """Matrices of one shape, their sparsities and gradients."""
    sparsities = [0.4, 0.9, 0.0][:count]
    params = [
        tuple(p * (1 + 0.1 * i) for p in make_params(outs, ins, 2, 3, rule.kernel, device))
        for i in range(count)
    ]
    grads = torch.randn(count, outs, ins, generator=torch.Generator().manual_seed(3))
    return params, sparsities, grads.to(device)
