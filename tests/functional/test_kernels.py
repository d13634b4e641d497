import pytest
import torch

from snella_seg.functional import distance_kernel, linear_kernel, mixed_kernel


def factors(heads=2, in_features=5, out_features=7, columns=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = dict(dtype=torch.float64, generator=generator)
    return (
        torch.randn(heads, in_features, columns, **shape),
        torch.randn(heads, out_features, columns, **shape),
    )


def written_distance(p, q, scale):
    """The formula, one entry at a time."""
    out = torch.zeros(q.shape[1], p.shape[1], dtype=p.dtype)
    for o in range(q.shape[1]):
        for i in range(p.shape[1]):
            for h in range(p.shape[0]):
                sign = 1 if h % 2 == 0 else -1
                out[o, i] += sign * scale * (p[h, i] - q[h, o]).square().sum().sqrt()
    return out


@pytest.mark.parametrize("heads", [1, 2, 3, 4])
def test_distance_is_the_written_formula(heads):
    p, q = factors(heads)
    torch.testing.assert_close(distance_kernel(p, q, 0.3), written_distance(p, q, 0.3))


def test_mixed_adds_a_softmax_over_outputs():
    p, q = factors()
    d = written_distance(p, q, 0.1)
    expected = d + 0.7 * (d / 1.3).exp() / (d / 1.3).exp().sum(0, keepdim=True) - 0.2
    torch.testing.assert_close(mixed_kernel(p, q, 0.7, 1.3, -0.2), expected)
    columns = mixed_kernel(p, q, 1.0, 1.0, 0.0) - d
    torch.testing.assert_close(columns.sum(0), torch.ones(5, dtype=torch.float64))


def test_linear_is_the_written_formula():
    p, q = factors(heads=3)
    written = torch.zeros(q.shape[1], p.shape[1], dtype=p.dtype)
    for o in range(q.shape[1]):
        for i in range(p.shape[1]):
            written[o, i] = 0.7 * sum(q[h, o] @ p[h, i] for h in range(len(p)))
    torch.testing.assert_close(linear_kernel(p, q, 0.7), written)


def test_gradcheck():
    p, q = (t.requires_grad_() for t in factors())
    scalars = [torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (0.7, 1.3, 0.1)]
    assert torch.autograd.gradcheck(distance_kernel, (p, q))
    assert torch.autograd.gradcheck(mixed_kernel, (p, q, *scalars))


def test_gradient_at_distance_zero_is_zero():
    p, _ = factors()
    p.requires_grad_()
    q = p.detach()[:, :1].clone().requires_grad_()  # one output that coincides with input 0
    distance_kernel(p, q)[0, 0].backward()
    assert torch.equal(p.grad, torch.zeros_like(p)) and torch.equal(q.grad, torch.zeros_like(q))


def test_nearly_equal_rows_keep_their_digits_in_single_precision():
    p, _ = factors(heads=1)
    q = p + 1e-4 * factors(heads=1, seed=1)[0]
    exact = distance_kernel(p, q).diagonal()
    single = distance_kernel(p.float(), q.float()).diagonal().double()
    torch.testing.assert_close(single, exact, rtol=5e-3, atol=0)


@pytest.mark.parametrize(
    "shapes", [((2, 5, 3), (1, 7, 3)), ((2, 5, 3), (2, 7, 4)), ((5, 3), (7, 3))]
)
def test_factors_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match="factors"):
        distance_kernel(*(torch.zeros(shape) for shape in shapes))
