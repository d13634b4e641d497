"""The gradient by a weight from a part of the tokens."""

import math

import pytest
import torch
import torch.nn.functional as F

from snella_seg.engine import DeltaBlock, adapted_linear, product
from snella_seg.engine.low_rank import is_low_rank
from snella_seg.engine.sampling import TokenSample, choose, inclusion_probabilities
from snella_seg.functional import DeltaRule

RULES = {
    "snella": DeltaRule("mixed", "weighted"),
    "snella_v2": DeltaRule("centred", "normalised"),
    "snell": DeltaRule("distance", "soft"),
    "linear": DeltaRule("linear", "hard"),
}


def sizes_of(name):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(101, generator=generator, dtype=torch.float64)
    return {
        "even": torch.ones_like(drawn),
        "uneven": drawn**3,
        "few": torch.cat([drawn[:5], torch.zeros(60, dtype=torch.float64)]),
        "none": torch.zeros(30, dtype=torch.float64),
        "one": torch.tensor([1e6, 1.0, 1.0], dtype=torch.float64),
    }[name]


@pytest.mark.parametrize("name", ["even", "uneven", "few", "none", "one"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_each_token_takes_part_as_often_as_it_should(name, share):
    sizes, draws = sizes_of(name), 2000
    count = min(math.ceil(share * len(sizes)), len(sizes) - 1)
    expected = inclusion_probabilities(sizes, count)
    assert float(expected.sum()) == pytest.approx(count) and expected.max() <= 1.0
    in_proportion = (expected < 1.0) & (sizes > 0)
    if in_proportion.any():
        ratio = expected[in_proportion] / sizes[in_proportion]
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
        assert all(sizes[expected == 1.0] >= sizes[in_proportion].max())
    seen = torch.zeros_like(sizes)
    for number in range(draws):
        chosen, weights = choose(sizes, count, (number + 0.5) / draws)
        assert len(chosen.unique()) == count
        torch.testing.assert_close(weights, 1.0 / expected[chosen])
        seen[chosen] += 1.0 / draws
    torch.testing.assert_close(seen, expected, rtol=0, atol=1.5 / draws)


def problem(rule, rows=((0, 6), (6, 12)), tokens=30, dtype=torch.float64):
    """x, W, b and blocks; some tokens are far larger than others."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    x = (draw(2, tokens // 2, 5) * draw(2, tokens // 2, 1).exp()).to(dtype)
    weight, bias = draw(12, 5).to(dtype), draw(12).to(dtype)
    blocks = []
    for start, stop in rows:
        params = [draw(2, 5, 2), draw(2, stop - start, 2)]
        if rule.kernel == "mixed":
            params += [torch.tensor([v], dtype=torch.float64) for v in (0.9, 1.2, 0.05)]
        leaves = tuple(p.to(dtype).requires_grad_() for p in params)
        blocks.append(DeltaBlock(start, stop, rule, 0.4, leaves))
    return x.requires_grad_(), weight, bias.requires_grad_(), blocks


def gradients(x, weight, bias, blocks, **options):
    """y, and the gradients by x, bias and all parameters of a sum of y with fixed weights."""
    y = adapted_linear(x, weight, bias, blocks, **options)
    seed = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    params = [p for block in blocks for p in block.params]
    return [y.detach(), *torch.autograd.grad(y, [x, bias, *params], seed.to(y.dtype))]


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in RULES), *(("snella_v2", {o: 0.4}) for o in ("drop_path", "dropout"))],
    ids=str,
)
def test_the_mean_over_draws_is_the_exact_gradient(name, options):
    made, draws = problem(RULES[name]), 200

    def run(seed, **share):
        torch.manual_seed(seed)  # what is dropped is drawn first
        return gradients(*made, **options, **share)

    differences = []
    for seed in range(draws):
        exact, found = run(seed), run(seed, token_share=0.5)
        assert all(torch.equal(a, b) for a, b in zip(found[:3], exact[:3], strict=True))
        parts = [(b - a).flatten() for a, b in zip(exact[3:], found[3:], strict=True)]
        differences.append(torch.cat(parts))
    differences = torch.stack(differences)
    assert differences.abs().max() > 0
    error = differences.std(0) / draws**0.5
    moves = error > 1e-12
    z = differences.mean(0)[moves] / error[moves]
    assert z.abs().max() < 5.0 and float(z.square().mean()) < 2.5


def test_largest_tokens_alone_would_be_biased(monkeypatch):
    """The test above can fail."""
    x, weight, bias, blocks = problem(RULES["snella_v2"])
    exact = gradients(x, weight, bias, blocks)[3:]

    class Largest(TokenSample):
        def take(self, x, grad_y):
            chosen = (x.norm(dim=1) * grad_y.norm(dim=1)).topk(15).indices
            return x[chosen], grad_y[chosen]

    monkeypatch.setattr(product, "TokenSample", Largest)
    always = gradients(x, weight, bias, blocks, token_share=0.5)[3:]
    gap = sum(float((a - b).square().sum()) for a, b in zip(exact, always, strict=True))
    assert gap > 1e-3 * sum(float(a.square().sum()) for a in exact)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_tokens_are_the_exact_gradient_bit_for_bit(name, dtype):
    made = problem(RULES[name], dtype=dtype)
    before = torch.get_rng_state()
    expected, found = gradients(*made), gradients(*made, token_share=1.0)
    assert torch.equal(torch.get_rng_state(), before)  # nothing is drawn
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    almost = gradients(*made, token_share=0.999)  # all of 30
    assert all(torch.equal(a, b) for a, b in zip(almost, expected, strict=True))


def test_one_draw_is_the_product_of_the_chosen_rows():
    x, weight, bias, blocks = problem(RULES["linear"])
    torch.manual_seed(5)
    offset = float(torch.rand(()))
    torch.manual_seed(5)
    found = gradients(x, weight, bias, blocks, token_share=0.3)[3:]
    leaf, y = x.detach().flatten(0, 1), adapted_linear(x, weight, bias, blocks)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    g = g.flatten(0, 1)
    chosen, weights = choose(leaf.norm(dim=1) * g.norm(dim=1), 9, offset)
    estimate = g[chosen].T @ (leaf[chosen] * weights[:, None])
    expected = []
    for block in blocks:
        delta, _ = block.rule(block.params, block.sparsity)
        expected += torch.autograd.grad(delta, block.params, estimate[block.rows])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_gradcheck_of_all_else():
    x, weight, bias, blocks = problem(RULES["snella_v2"], tokens=10)
    for block in blocks:
        for parameter in block.params:
            parameter.requires_grad_(False)

    def layer(x, bias):
        return adapted_linear(x, weight, bias, blocks, token_share=0.3)

    assert torch.autograd.gradcheck(layer, (x, bias))


def test_the_same_draw_gives_the_same_bits_and_another_does_not():
    made = problem(RULES["snella_v2"], dtype=torch.float32)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(gradients(*made, token_share=0.4))
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not torch.equal(runs[0][3], runs[2][3])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision(dtype):
    x, weight, bias, blocks = problem(RULES["snella_v2"], dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        found = gradients(x, weight, bias, blocks, token_share=0.5)
    assert all(t.isfinite().all() for t in found) and found[3].any()
    assert all(t.dtype == torch.float32 for t in found[3:])


def test_what_is_not_finite_stays_so():
    for value in (float("nan"), float("inf")):
        for which in range(2):
            rows = [torch.ones(10, 3), torch.ones(10, 4)]
            rows[which][7, 0] = value
            x, grad_y = TokenSample(0.3, 0.1).take(*rows)
            assert not (grad_y.T @ x).isfinite().all()


def test_processes_that_train_together_take_other_tokens(monkeypatch):
    rows = torch.arange(1.0, 41.0)[:, None].expand(40, 3), torch.ones(40, 4)
    alone = TokenSample(0.25, 0.2).take(*rows)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    taken = []
    for rank in range(4):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        taken.append(TokenSample(0.25, 0.2).take(*rows)[0])
    assert torch.equal(taken[0], alone[0])
    assert all(not torch.equal(a, b) for i, a in enumerate(taken) for b in taken[:i])


def test_lora_takes_all_tokens():
    rule = DeltaRule("linear", "none")
    assert is_low_rank(rule)
    made = problem(rule)
    expected, found = gradients(*made), gradients(*made, token_share=0.5)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_shares_out_of_range_are_refused(share):
    x, weight, bias, blocks = problem(RULES["snella"])
    with pytest.raises(ValueError, match=r"token_share must lie in \(0, 1\], got"):
        adapted_linear(x, weight, bias, blocks, token_share=share)


def test_a_single_token():
    x, weight, _, blocks = problem(RULES["snella"])
    one = x.detach()[0, 0]
    y = adapted_linear(one, weight, None, blocks, token_share=0.5)
    expected = adapted_linear(one, weight, None, blocks)
    params = [p for block in blocks for p in block.params]
    torch.testing.assert_close(y, F.linear(one, weight) + (expected - F.linear(one, weight)))
    for a, b in zip(
        torch.autograd.grad(y.sum(), params), torch.autograd.grad(expected.sum(), params),
        strict=True,
    ):  # fmt: skip
        assert torch.equal(a, b)
