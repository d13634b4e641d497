import pytest
import torch
from torch import nn

from snella_seg.budget.importances import ImportanceTracker
from snella_seg.functional import ema_importance, importance_score
from snella_seg.inject import add_adapters


def model():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    add_adapters(layers, dict(rank=2), ["0", "1"])
    return layers


def step(layers, seed):
    layers.zero_grad()
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))
    layers(x).square().sum().backward()


def test_agrees_with_the_pure_functions():
    layers = model()
    tracker = ImportanceTracker(layers, beta1=0.8, beta2=0.6)
    expected = [(torch.zeros_like(f), torch.zeros_like(f)) for f in tracker.factors]
    for seed in range(3):
        step(layers, seed)
        tracker.update()
        expected = [
            ema_importance((f * f.grad).abs().detach(), *old, 0.8, 0.6)
            for f, old in zip(tracker.factors, expected, strict=True)
        ]
    scores = [float(importance_score(*e)) for e in expected]
    sums = [scores[0] + scores[1], scores[2] + scores[3]]
    assert tracker.scores() == pytest.approx(sums, rel=1e-5)


def test_the_loss_scale_is_taken_out():
    layers = model()
    plain, scaled = ImportanceTracker(layers), ImportanceTracker(layers)
    step(layers, 0)
    plain.update()
    for factor in plain.factors:
        factor.grad *= 1024
    scaled.update(torch.tensor(1024.0))
    assert scaled.scores() == pytest.approx(plain.scores(), rel=1e-5)


def test_broken_gradients_count_as_zero():
    layers = model()
    tracker = ImportanceTracker(layers)
    step(layers, 0)
    tracker.factors[0].grad[0, 0, 0] = float("nan")
    tracker.factors[1].grad[0, 0, 0] = float("inf")
    tracker.factors[2].grad = None
    tracker.update()
    assert all(torch.isfinite(torch.tensor(tracker.scores())))


def test_magnitude_and_frobenius():
    layers = model()
    tracker = ImportanceTracker(layers, "magnitude", beta1=0.0, beta2=0.0)
    tracker.update()  # needs no gradient
    factor = tracker.factors[0].detach().abs()
    torch.testing.assert_close(tracker.average[0], factor)
    tracker = ImportanceTracker(layers, "frobenius")
    norms = [float(a.delta_weight().norm()) for a in tracker.adapters.values()]
    assert tracker.scores() == pytest.approx(norms)


def test_per_weight_divides_by_what_is_in_force():
    layers = model()
    plain, tracker = ImportanceTracker(layers), ImportanceTracker(layers, "per_weight")
    step(layers, 0)
    plain.update(), tracker.update()
    first, second = tracker.adapters.values()
    first.set_num_nonzero(7), second.set_num_nonzero(0)
    scores = plain.scores()
    assert tracker.scores() == pytest.approx([scores[0] / 7, scores[1]])


@pytest.mark.parametrize("sparsifier", ["weighted", "normalised"])
def test_common_threshold_counts_the_largest_of_all(sparsifier):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 20))
    add_adapters(layers, dict(rank=4, sparsifier=sparsifier), ["0", "1"])
    tracker = ImportanceTracker(layers, "common_threshold")
    dense = [a.delta_weight().detach().abs() for a in tracker.adapters.values()]
    for adapter in tracker.adapters.values():
        adapter.set_num_nonzero(100)  # what is left out now takes part in the count
    for given, budget in ((700, 700), (None, 200), (5000, 1998)):  # the smallest of each is at t
        limit = torch.cat([d.flatten() for d in dense]).sort(descending=True).values[budget - 1]
        counts = [int((d >= limit).sum()) for d in dense]
        scores = tracker.scores(given)
        assert sum(scores) == pytest.approx(budget)
        assert scores == pytest.approx(counts, abs=4)  # bins of 1/128


def test_state_round_trip_and_refusal():
    layers = model()
    first = ImportanceTracker(layers)
    step(layers, 0)
    first.update()
    second = ImportanceTracker(layers)
    saved = first.state_dict()
    second.load_state_dict(saved)
    assert second.scores() == first.scores() and max(first.scores()) > 0
    with pytest.raises(ValueError, match="differ in importance"):
        ImportanceTracker(layers, "magnitude").load_state_dict(first.state_dict())
    for change, message in (
        (dict(names=["other"]), "differ in names"),
        (dict(average=[m[:1] for m in saved["average"]]), "factors of other shapes"),
        (dict(uncertainty=[m / 0 for m in saved["uncertainty"]]), "are not finite, the run had"),
    ):
        with pytest.raises(ValueError, match=message):
            second.load_state_dict({**saved, **change})
    assert second.scores() == first.scores()


def test_one_wild_gradient_is_soon_forgotten():
    """A single element of 1e6 used to decide allocations for dozens of steps."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    add_adapters(layers, dict(rank=8), ["0", "1"])
    calm, wild = ImportanceTracker(layers), ImportanceTracker(layers)
    generator = torch.Generator().manual_seed(1)
    for step_number in range(30):
        for factor in calm.factors:
            factor.grad = torch.randn(factor.shape, generator=generator)
        calm.update()
        if step_number == 9:
            calm.factors[0].grad[0, 0, 0] = 1e6
        wild.update()
    assert wild.scores() == pytest.approx(calm.scores(), rel=0.1)
