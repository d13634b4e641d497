"""Which weights change hands, counted against masks that are held in full."""

import torch
from torch import nn

from snella_seg.budget import ChurnTracker, churn, current_delta
from snella_seg.inject import add_adapters


def adapted():
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(7, 5), "b": nn.Linear(5, 9)})
    return add_adapters(model, dict(rank=4, initial_sparsity=0.3), ["a", "b"])


def masks(adapters):
    return {name: a.delta_weight() != 0 for name, a in adapters.items()}


def move(adapters, seed):
    """Other factors and another number of weights."""
    generator = torch.Generator().manual_seed(seed)
    for adapter in adapters.values():
        with torch.no_grad():
            for factor in adapter.factors:
                factor += 0.3 * torch.randn(factor.shape, generator=generator)
        adapter.set_num_nonzero(adapter.size // 2)


def test_counts_and_norms_are_those_of_the_masks():
    adapters = adapted()
    tracker = ChurnTracker(adapters)
    before = masks(adapters)
    first = tracker.look()
    assert first["entered"] is None and first["left"] is None
    move(adapters, 1)
    now, seen = masks(adapters), tracker.look()
    for name, adapter in adapters.items():
        torch.testing.assert_close(current_delta(adapter), adapter.delta_weight().detach())
        torch.testing.assert_close(
            torch.tensor(seen["norm"][name]), adapter.delta_weight().norm().detach()
        )
        assert seen["entered"][name] == (now[name] & ~before[name]).sum()
        assert seen["left"][name] == (before[name] & ~now[name]).sum()
        assert seen["entered"][name] > 0 and seen["left"][name] > 0


def test_nothing_moved_nothing_changed():
    adapters = adapted()
    tracker = ChurnTracker(adapters)
    tracker.look()
    seen = tracker.look()
    assert not any(seen["entered"].values()) and not any(seen["left"].values())


def test_state_goes_on_elsewhere():
    adapters = adapted()
    tracker, other = ChurnTracker(adapters), ChurnTracker(adapters)
    tracker.look()
    state = tracker.state_dict()
    assert {name: mask.numel() for name, mask in state.items()} == {"a.a": 5, "b.b": 6}
    other.load_state_dict(state)
    move(adapters, 2)
    assert other.look() == tracker.look()


def test_large_matrices_are_watched_in_part(monkeypatch):
    """The same part at every look, and counts that come close to those of the whole."""
    torch.manual_seed(0)
    adapters = add_adapters(nn.ModuleDict({"a": nn.Linear(128, 128)}), dict(rank=4), ["a"])
    whole = ChurnTracker(adapters)
    monkeypatch.setattr(churn, "SAMPLE", 4096)
    part = ChurnTracker(adapters)
    for seed in range(2):
        move(adapters, seed)
        monkeypatch.setattr(churn, "SAMPLE", 1 << 14)
        expected = whole.look()
        monkeypatch.setattr(churn, "SAMPLE", 4096)
        seen = part.look()
    for key in ("entered", "left"):
        assert abs(seen[key]["a.a"] - expected[key]["a.a"]) < 0.1 * expected[key]["a.a"]
    assert len(part.seen["a.a"]) == 4096 and part.state_dict()["a.a"].numel() == 512
