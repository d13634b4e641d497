"""The adapted product with deltas by the Triton kernels."""

import pytest
import torch
from gpu_matrices import make_params

from snella_seg.engine import DeltaBlock, adapted_linear, adapted_weight
from snella_seg.functional import DeltaRule


@pytest.mark.parametrize("options", [{}, {"dropout": 0.3, "drop_path": 0.4}])
@pytest.mark.parametrize("half", [False, True])
def test_the_adapted_product_by_these_kernels(options, half, device, monkeypatch):
    """Packed rows of which some are not adapted; the same as by the tiled weight side."""
    torch.manual_seed(2)
    weight, x = torch.randn(24, 17, device=device), torch.randn(6, 3, 17, device=device)
    rows = ((0, 8), (16, 24))
    params = [make_params(8, 17, 2, 3, "mixed", device) for _ in rows]
    for group in params:
        for tensor in group:
            tensor.requires_grad_()
    seed = torch.randn(6, 3, 24, device=device)
    results = []
    for by_triton in (True, False):
        monkeypatch.setattr(DeltaBlock, "by_triton", by_triton)
        blocks = [DeltaBlock(*r, DeltaRule(), 0.4, p) for r, p in zip(rows, params, strict=True)]
        torch.manual_seed(0)
        leaf = x.clone().requires_grad_()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            y = adapted_linear(leaf, weight, None, blocks, **options).float()
        merged = adapted_weight(weight, blocks)
        leaves = [leaf, *(p for group in params for p in group)]
        grads = torch.autograd.grad(y, leaves, seed)
        results.append([y, merged, *grads, *torch.autograd.grad(merged.square().sum(), leaves[1:])])
    for a, b in zip(*results, strict=True):
        scale = float(b.detach().abs().max()) + 0.01  # the scalars are sums of larger terms
        torch.testing.assert_close(a, b, rtol=0, atol=(5e-2 if half else 2e-5) * scale)


def test_a_turned_weight_of_another_precision(device, monkeypatch):
    """Only some rows of it adapted; the factors are in single precision."""
    monkeypatch.setattr(DeltaBlock, "by_triton", True)
    weight = torch.randn(17, 28, device=device, dtype=torch.float64).T
    params = make_params(8, 17, 2, 3, "mixed", device)
    x = torch.randn(5, 17, device=device, dtype=torch.float64, requires_grad=True)
    leaves = [x, *(p.requires_grad_() for p in params)]
    y = adapted_linear(x, weight, None, [DeltaBlock(4, 12, DeltaRule(), 0.4, params)])
    delta, _ = DeltaRule()(tuple(p.double() for p in params), 0.4)
    whole = torch.nn.functional.pad(delta, (0, 0, 4, 16))
    expected = x @ (weight + whole).T
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)
    seed = torch.randn_like(y)
    pairs = zip(*(torch.autograd.grad(out, leaves, seed) for out in (y, expected)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5 * float(b.abs().max()) + 1e-5)
