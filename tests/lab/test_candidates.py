"""Other forms of the method: what their names say, and that a backbone trains by them."""

import pytest
import torch

import snella_seg.lab.candidates  # noqa: F401
from snella_seg.functional import distance_kernel, get_kernel, linear_kernel, sparsify
from snella_seg.inject import METHODS, add_adapters, settle
from snella_seg.lab.candidates.small_start import SmallStartAdapter
from snella_seg.layers.adapter import SMALL


def factors(heads=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(heads, n, 3, dtype=torch.float64, generator=generator) for n in (7, 5))


def test_centred_distances_have_no_means():
    dense = get_kernel("centred").dense(*factors(), scale=0.1)
    assert dense.shape == (5, 7) and dense.std() > 1e-3
    for dim in (0, 1):
        torch.testing.assert_close(dense.mean(dim), torch.zeros_like(dense.mean(dim)))


def test_a_hybrid_is_the_sum_of_its_halves():
    p, q = factors()
    dense = get_kernel("hybrid").function(p, q, scale=0.2)
    expected = linear_kernel(p[:2], q[:2]) + distance_kernel(p[2:], q[2:], 0.2)
    torch.testing.assert_close(dense, expected)


def test_rooted_is_linear_in_scale():
    dense = torch.randn(5, 7, dtype=torch.float64)
    delta = sparsify(dense, 0.5, "rooted")
    torch.testing.assert_close(sparsify(3.0 * dense, 0.5, "rooted"), 3.0 * delta)
    assert (delta != 0).sum() == 17 and not sparsify(torch.zeros(5, 7), 0.0, "rooted").any()


@pytest.mark.parametrize(
    ("kernel", "linear"), [("linear", 4), ("hybrid", 2), ("hybrid_centred", 2), ("centred", 0)]
)
def test_linear_heads_start_small(kernel, linear):
    torch.manual_seed(0)
    adapter = SmallStartAdapter(30, 20, rank=8, heads=4, kernel=kernel, sparsifier="normalised")
    p, q = adapter.factors
    if linear:
        assert p[:linear].abs().max() > 0.5 * 30**-0.5 and p.abs().max() <= 30**-0.5
        assert 0.5 * SMALL < q[:linear].abs().max() <= SMALL
    if linear < 4:
        assert q[linear:].abs().max() > 10 * SMALL


def test_the_method_trains_all_factors():
    options, targets, _ = settle("form", dict(kernel="hybrid", heads=4, rank=4), "auto", "auto")
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 6))
    adapters = add_adapters(model, options, ["0", "1"], METHODS["form"].adapter_class)
    for adapter in adapters.values():
        adapter.set_num_nonzero(18)
    model(torch.randn(3, 6)).square().sum().backward()
    for adapter in adapters.values():
        assert all(factor.grad.abs().sum() > 0 for factor in adapter.factors)
