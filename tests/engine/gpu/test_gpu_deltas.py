"""Deltas and gradients of single matrices, on a GPU or in Triton's interpreter."""

import pytest
import torch
from gpu_matrices import INTERPRETED, make_params, plain

from snella_seg.engine import gpu as fast
from snella_seg.functional import DeltaRule, distance_kernel, quantile_threshold


def term_sizes(params, rule, delta, grad):
    """What rounding in each gradient scales with: the largest entry of the factors' gradients is
    their own, the scalars are sums whose terms' magnitudes are added here."""
    p, q, *scalars = (p.double() for p in params)
    if not scalars:
        return []
    alpha, gamma, beta = scalars
    distances = distance_kernel(p, q, rule.scale)
    soft = torch.softmax(distances / gamma, 0)
    grad_kernel = grad.double() * delta / (distances + alpha * soft + beta)
    centred = grad_kernel - (grad_kernel * soft).sum(0)
    terms = (grad_kernel * soft, alpha / gamma**2 * soft * centred * distances, grad_kernel)
    return [float(term.abs().sum()) for term in terms]


def not_worse(found, rough, exact, size, tolerance=2e-6):
    """Error against the exact value at most that of the plain form plus a tolerance."""
    error, allowed = ((x.double() - exact).abs().max() for x in (found, rough))
    if found.dtype == torch.bfloat16:
        tolerance = 2**-8
    assert error <= allowed + tolerance * size, (float(error), float(allowed), size)


BF16, FP32 = torch.bfloat16, torch.float32
CASES = [
    # out, in, heads, r/H, kernel, sparsifier, sparsity, dtype of the parameters, of the gradient
    (5, 7, 1, 1, "mixed", "weighted", 0.4, FP32, FP32),
    (5, 7, 2, 3, "distance", "hard", 0.9, FP32, FP32),
    (1, 9, 2, 4, "mixed", "weighted", 0.4, FP32, FP32),
    (9, 1, 2, 4, "mixed", "soft", 0.4, FP32, FP32),
    (33, 17, 2, 16, "mixed", "soft", 0.4, FP32, BF16),
    (33, 17, 4, 3, "mixed", "hard", 0.0, BF16, BF16),
    (17, 33, 2, 20, "distance", "weighted", 0.4, FP32, FP32),
    (64, 48, 2, 16, "mixed", "weighted", 0.9, FP32, FP32),
    (64, 48, 1, 3, "distance", "soft", 0.4, BF16, FP32),
    (48, 64, 4, 1, "mixed", "weighted", 0.4, FP32, FP32),
    (130, 70, 2, 3, "mixed", "weighted", 0.4, FP32, FP32),
    (70, 130, 2, 3, "mixed", "hard", 0.9, FP32, FP32),
    (33, 17, 2, 3, "mixed", "soft", 1.0, FP32, FP32),
    (5, 7, 1, 1, "centred", "normalised", 0.4, FP32, FP32),
    (33, 17, 4, 3, "centred", "hard", 0.0, BF16, BF16),
    (17, 33, 2, 20, "centred", "normalised", 0.4, FP32, FP32),
    (64, 48, 2, 16, "centred", "normalised", 0.9, FP32, BF16),
    (130, 70, 2, 3, "centred", "weighted", 0.4, BF16, FP32),
    (70, 130, 3, 2, "centred", "normalised", 0.9, FP32, FP32),
    (48, 64, 2, 4, "distance", "normalised", 0.4, FP32, FP32),
    (48, 64, 2, 4, "mixed", "normalised", 0.4, FP32, FP32),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_agrees_with_plain_autograd(case, device):
    outs, ins, heads, columns, kernel, mode, sparsity, dtype, grad_dtype = case
    rule = DeltaRule(kernel, mode)
    params = make_params(outs, ins, heads, columns, kernel, device, dtype)
    grad = torch.randn(outs, ins, generator=torch.Generator().manual_seed(1))
    grad = grad.to(device, grad_dtype)
    delta, state = fast.launch_delta(params, rule, sparsity)
    grads = fast.launch_backward(params, rule, state, grad)
    assert delta.dtype == torch.float32 and delta.shape == (outs, ins)
    assert [(g.shape, g.dtype) for g in grads] == [(p.shape, p.dtype) for p in params]
    rough_delta, rough_threshold, rough = plain(params, rule, sparsity, grad, torch.float32)
    exact_delta, threshold, exact = plain(params, rule, sparsity, grad, torch.float64)
    assert torch.equal(delta != 0, exact_delta != 0)
    not_worse(delta, rough_delta, exact_delta, float(exact_delta.abs().max()))
    size = threshold
    if kernel == "centred":  # has lost the digits of the distances that cancel
        size = distance_kernel(*(p.float() for p in params[:2]), rule.scale).max()
    not_worse(state[0], rough_threshold, threshold, float(size))
    sizes = [float(g.abs().max()) for g in exact[:2]]
    sizes += term_sizes(params, rule, exact_delta, grad)
    for found, near, right, size in zip(grads, rough, exact, sizes, strict=True):
        not_worse(found, near, right, size)


@pytest.mark.parametrize("ties", [False, True])
def test_threshold_has_the_bits_of_the_plain_one(ties, device):
    params = make_params(33, 17, 2, 3, "mixed", device)
    if ties:
        for factor in params[:2]:
            factor[:, 1::2] = factor[:, :1]
    rule = DeltaRule("mixed", "hard")
    delta, (smallest, _) = fast.launch_delta(params, rule, 0.0)
    magnitudes = torch.where(delta == 0, smallest, delta.abs())  # the smallest itself falls out
    last = magnitudes.numel() - 1
    for sparsity in (0, 0.1, 0.4, 100 / last, 0.73, 0.9, (last - 0.5) / last, 1):
        kept, (threshold, _) = fast.launch_delta(params, rule, sparsity)
        expected = quantile_threshold(magnitudes, sparsity)
        assert threshold.ndim == 0 and torch.equal(threshold, expected), sparsity
        assert torch.equal(kept, delta * (magnitudes > expected))
    assert not kept.any()


def rounded(values, dtype):
    """To ``dtype``; Triton's interpreter cuts bfloat16 off where a GPU rounds to the nearest."""
    if INTERPRETED and dtype == torch.bfloat16:
        values = (values.view(torch.int32) & -(2**16)).view(torch.float32)
    return values.to(dtype)


def test_base_and_output_may_be_slices_of_a_packed_weight(device):
    rule = DeltaRule()
    params = make_params(33, 17, 2, 3, "mixed", device)
    delta, state = fast.launch_delta(params, rule, 0.4)
    grad = torch.randn(40, 20, device=device)[3:36, 1:18]
    expected = fast.launch_backward(params, rule, state, grad.contiguous())
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        packed = torch.randn(40, 24, device=device).to(dtype)
        base = packed[5:38, 2:19]
        summed = rounded(base.float() + delta, dtype)
        assert torch.equal(fast.launch_delta(params, rule, 0.4, base)[0], summed)
        for in_place in (False, True):
            whole = packed.clone()
            out = whole[5:38, 2:19]
            made, again = fast.launch_delta(params, rule, 0.4, out if in_place else base, out)
            assert made is out and torch.equal(out, summed)
            assert all(torch.equal(a, b) for a, b in zip(again, state, strict=True))
            out.copy_(base)
            found = fast.launch_backward(
                params, rule, state, grad, None, out if in_place else base, out
            )
            assert torch.equal(out, summed)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            out.copy_(base)
            assert torch.equal(whole, packed)  # nothing beside the slice was touched
    alone = torch.full((33, 20), 7.0, device=device)
    fast.launch_delta(params, rule, 0.4, out=alone[:, :17])
    assert torch.equal(alone[:, :17], delta) and (alone[:, 17:] == 7).all()


@pytest.mark.parametrize("kernel", ["mixed", "distance", "centred"])
@pytest.mark.parametrize("sparsifier", ["weighted", "normalised"])
def test_same_bits_twice_and_in_recomputation(kernel, sparsifier, device):
    rule = DeltaRule(kernel, sparsifier)
    params = make_params(70, 40, 2, 3, kernel, device)
    grad = torch.randn(70, 40, device=device)

    def run():
        delta, state = fast.launch_delta(params, rule, 0.4)
        again = torch.empty_like(delta)
        grads = fast.launch_backward(params, rule, state, grad, out=again)
        assert torch.equal(again, delta)
        return [delta, *state, *grads]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.parametrize("rule", [DeltaRule(), DeltaRule("centred", "normalised")], ids=str)
def test_the_same_weights_take_part_in_every_gradient(rule, device):
    """A gradient that lies beside the mask alone reaches nothing: not one bit of any parameter."""
    params = make_params(70, 40, 2, 3, rule.kernel, device)
    delta, state = fast.launch_delta(params, rule, 0.7)
    grads = fast.launch_backward(params, rule, state, (delta == 0).float())
    assert 0 < int((delta != 0).sum()) <= 0.3 * delta.numel() + 1
    assert not any(g.any() for g in grads)


def test_points_that_all_coincide(device):
    """K is zero once centred, and its root mean square with it: nothing moves, nothing is NaN."""
    params = tuple(torch.full((2, n, 3), 0.5, device=device) for n in (17, 9))
    rule = DeltaRule("centred", "normalised")
    for sparsity in (0.0, 0.5):
        delta, state = fast.launch_delta(params, rule, sparsity)
        grads = fast.launch_backward(params, rule, state, torch.ones(9, 17, device=device))
        assert not any(t.any() for t in (delta, *grads))


def test_a_gamma_of_zero_is_nan_as_in_the_plain_form(device):
    params = make_params(9, 7, 2, 3, "mixed", device)
    params[3].zero_()
    grad = torch.ones(9, 7, device=device)
    delta, state = fast.launch_delta(params, DeltaRule(), 0.4)
    grads = fast.launch_backward(params, DeltaRule(), state, grad)
    expected, _, exact = plain(params, DeltaRule(), 0.4, grad, torch.float32)
    for found, right in zip((delta, *grads), (expected, *exact), strict=True):
        assert torch.equal(found.isnan(), right.isnan())


def test_only_wanted_gradients(device):
    params = make_params(33, 17, 2, 3, "mixed", device)
    rule, grad = DeltaRule(), torch.randn(33, 17, device=device)
    _, state = fast.launch_delta(params, rule, 0.4)
    everything = fast.launch_backward(params, rule, state, grad)
    for i in range(5):
        needs = tuple(j == i for j in range(5))
        found = fast.launch_backward(params, rule, state, grad, needs)
        assert [g is not None for g in found] == list(needs)
        assert torch.equal(found[i], everything[i])
    assert fast.launch_backward(params, rule, state, grad, (False,) * 5) == (None,) * 5


def test_state_is_small(device):
    params = make_params(64, 48, 2, 3, "mixed", device)
    _, state = fast.launch_delta(params, DeltaRule(), 0.4)
    assert len({s.untyped_storage().data_ptr() for s in state}) == 1
    assert state[0].untyped_storage().nbytes() <= 4 * (2 * 48 + 2)


def test_points_that_nearly_coincide_keep_their_digits(device):
    """Own points times sums of ratios, less ratios times theirs, would lose them."""
    p, q = (2 + t for t in make_params(48, 48, 2, 3, "distance", device))
    q = p + 1e-4 * q
    rule, grad = DeltaRule("distance", "hard"), torch.randn(48, 48, device=device)
    _, state = fast.launch_delta((p, q), rule, 0.0)
    found = fast.launch_backward((p, q), rule, state, grad)
    _, _, exact = plain((p, q), rule, 0.0, grad, torch.float64)
    for a, b in zip(found, exact, strict=True):
        assert (a - b).abs().max() <= 1e-6 * b.abs().max()


def test_gradient_at_distance_zero_is_zero(device):
    p = torch.zeros(2, 7, 3, device=device)
    rule = DeltaRule("distance", "hard")
    params = (p, torch.zeros(2, 5, 3, device=device))
    params[1][:, 1:] = 1.0
    delta, state = fast.launch_delta(params, rule, 0.0)
    grads = fast.launch_backward(params, rule, state, torch.ones(5, 7, device=device))
    assert all(g.isfinite().all() for g in grads) and not grads[1][:, 0].any()


def test_nan_stays_where_it_is(device):
    params = make_params(33, 17, 2, 3, "distance", device)
    params[0][0, 4, 1] = float("nan")
    rule = DeltaRule("distance", "weighted")
    delta, state = fast.launch_delta(params, rule, 0.4)
    assert delta[:, 4].isnan().all() and delta.isnan().sum() == 33
    fast.launch_backward(params, rule, state, torch.ones_like(delta))
    soft = fast.launch_delta(params, DeltaRule("distance", "soft"), 1.0)
    assert soft[1][0].isnan() and soft[0].isnan().all()  # as its threshold is
    mixed = make_params(33, 17, 2, 3, "mixed", device)
    mixed[2].fill_(float("nan"))
    assert fast.launch_delta(mixed, DeltaRule(), 0.4)[1][0].isnan()


def test_what_does_not_fit_is_refused(device):
    rule, params = DeltaRule(), make_params(5, 7, 2, 3, "mixed", device)
    weight = torch.zeros(5, 7, device=device)
    _, state = fast.launch_delta(params, rule, 0.4)
    with pytest.raises(TypeError, match="float64"):
        fast.launch_delta(tuple(p.double() for p in params), rule, 0.4)
    with pytest.raises(TypeError, match="base.*float64"):
        fast.launch_delta(params, rule, 0.4, weight.double())
    with pytest.raises(ValueError, match="takes 5 tensors, got 2"):
        fast.launch_delta(params[:2], rule, 0.4)
    with pytest.raises(ValueError, match=r"sparsity must lie in \[0, 1\]"):
        fast.launch_delta(params, rule, 1.1)
    for other in (DeltaRule(sparsifier="none"), DeltaRule("linear")):
        with pytest.raises(ValueError, match="there are no Triton kernels for kernel"):
            fast.launch_delta(params, other, 0.4)
    with pytest.raises(ValueError, match="one element each"):
        fast.launch_delta((*params[:4], torch.zeros(2, device=device)), rule, 0.4)
    with pytest.raises(ValueError, match="empty"):
        fast.launch_delta((params[0][:, :0], *params[1:]), rule, 0.4)
    with pytest.raises(ValueError, match="out must have shape"):
        fast.launch_delta(params, rule, 0.4, out=weight[:4])
    with pytest.raises(ValueError, match="inner stride 1"):
        fast.launch_delta(params, rule, 0.4, out=torch.zeros(7, 5, device=device).T)
    with pytest.raises(ValueError, match="grad_deltas must have shape"):
        fast.launch_backward(params, rule, state, weight.T)
    with pytest.raises(ValueError, match="one entry per parameter"):
        fast.launch_backward(params, rule, state, weight, (True,))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter does run on the CPU")
def test_a_cpu_without_the_interpreter_is_refused():
    params = make_params(5, 7, 2, 3, "mixed", torch.device("cpu"))
    assert not fast.available(torch.device("cpu"))
    with pytest.raises(RuntimeError, match="cannot run on cpu.*TRITON_INTERPRET"):
        fast.launch_delta(params, DeltaRule(), 0.4)
