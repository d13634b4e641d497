import pytest
import torch
import torch.nn.functional as F

from snella_seg.functional import DeltaBlock, DeltaRule, adapted_linear, adapted_weight


def blocks_of(rows=((0, 6), (6, 12)), in_features=5, kernel="mixed", dtype=torch.float64):
    """One block per row range, as q, k and v have; factors large enough for deltas to show."""
    made = []
    for seed, (start, stop) in enumerate(rows):
        generator = torch.Generator().manual_seed(seed)
        p, q = (
            torch.randn(2, n, 2, dtype=dtype, generator=generator)
            for n in (in_features, stop - start)
        )
        scalars = [torch.tensor([v], dtype=dtype) for v in (0.9, 1.2, 0.05)]
        params = (p, q, *(scalars if kernel == "mixed" else ()))
        for tensor in params:
            tensor.requires_grad_()
        made.append(DeltaBlock(start, stop, DeltaRule(kernel), 0.4, params))
    return made


def plain(x, weight, bias, blocks):
    """The oracle: ordinary autograd over the same deltas."""
    weight = weight.clone()
    for block in blocks:
        delta, _ = block.rule(block.params, block.sparsity)
        rows = torch.arange(block.start, block.stop)
        weight = weight.index_add(0, rows, delta)
    return F.linear(x, weight, bias)


def problem(dtype=torch.float64, requires_grad=True):
    generator = torch.Generator().manual_seed(9)
    x, weight, bias = (
        torch.randn(shape, dtype=dtype, generator=generator)
        for shape in ((2, 3, 5), (12, 5), (12,))
    )
    return x.requires_grad_(requires_grad), weight, bias


@pytest.mark.parametrize("kernel", ["mixed", "distance"])
@pytest.mark.parametrize("rows", [((0, 12),), ((0, 4), (4, 8), (8, 12)), ((4, 8),)])
def test_agrees_with_plain_autograd(kernel, rows):
    x, weight, bias = problem()
    bias.requires_grad_()
    blocks = blocks_of(rows, kernel=kernel)
    inputs = [x, bias, *(p for b in blocks for p in b.params)]
    y, expected = adapted_linear(x, weight, bias, blocks), plain(x, weight, bias, blocks)
    torch.testing.assert_close(y, expected)
    seed = torch.randn_like(y)
    found = torch.autograd.grad(y, inputs, seed)
    for a, b in zip(found, torch.autograd.grad(expected, inputs, seed), strict=True):
        torch.testing.assert_close(a, b)


def test_gradcheck_with_the_hard_form():
    # The hard form is differentiable as it stands; the others hold a factor constant.
    x, weight, bias = problem()
    block = blocks_of(((0, 12),))[0]
    rule = DeltaRule("mixed", "hard")

    def layer(x, *params):
        return adapted_linear(x, weight, bias, [DeltaBlock(0, 12, rule, 0.4, params)])

    assert torch.autograd.gradcheck(layer, (x, *block.params))


def test_weight_form_agrees():
    _, weight, _ = problem()
    blocks = blocks_of()
    params = [p for b in blocks for p in b.params]
    merged = adapted_weight(weight, blocks)
    torch.testing.assert_close(
        merged.T, plain(torch.eye(5, dtype=torch.float64), weight, None, blocks)
    )
    seed = torch.randn_like(merged)
    found = torch.autograd.grad(merged, params, seed)
    eye = torch.eye(5, dtype=torch.float64)
    expected = torch.autograd.grad(plain(eye, weight, None, blocks), params, seed.T)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_frozen_inputs_get_no_gradient():
    x, weight, bias = problem(requires_grad=False)
    blocks = blocks_of()
    blocks[0].params[0].requires_grad_(False)
    adapted_linear(x, weight, bias, blocks).sum().backward()
    assert x.grad is None and weight.grad is None and blocks[0].params[0].grad is None
    assert blocks[0].params[1].grad is not None


def test_nothing_of_the_weights_size_is_saved():
    features = 64
    x = torch.randn(2, features, requires_grad=True)
    weight = torch.randn(features, features)
    blocks = blocks_of(((0, features),), features, dtype=torch.float32)
    new = []

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr():
            new.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        adapted_linear(x, weight, None, blocks)
        assert max(new) < weight.numel() / 4
        new.clear()
        plain(x, weight, None, blocks)
        assert max(new) >= weight.numel()  # the check can fail


def test_deltas_survive_half_precision():
    x, weight, _ = problem(torch.float32, requires_grad=False)
    blocks = blocks_of(dtype=torch.float32)
    for block in blocks:
        for factor in block.params[:2]:
            factor.data.mul_(1e-2)  # deltas far below what bfloat16 resolves beside the weight
    exact = plain(x, weight, None, blocks) - F.linear(x, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        change = adapted_linear(x, torch.zeros_like(weight), None, blocks).float()
        y = adapted_linear(x, weight, None, blocks)
        y.float().sum().backward()
    torch.testing.assert_close(change, exact, rtol=2e-2, atol=float(exact.abs().max()) * 1e-2)
    merged_in_half = (weight + adapted_weight(weight, blocks) - weight).bfloat16().float()
    lost = F.linear(x, merged_in_half) - F.linear(x, weight.bfloat16().float())
    assert (lost - exact).abs().max() > 10 * (change - exact).abs().max()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for b in blocks for p in b.params)


def test_same_bits_twice():
    def run():
        x, weight, bias = problem(torch.float32)
        blocks = blocks_of(dtype=torch.float32)
        y = adapted_linear(x, weight, bias, blocks)
        y.square().sum().backward()
        return [y, x.grad, *(p.grad for b in blocks for p in b.params)]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))
