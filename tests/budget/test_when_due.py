"""Reallocations that come only when they are due: the same in all processes."""

import torch
from torch import nn

from snella_seg.budget import SparsityAllocator
from snella_seg.inject import add_adapters


def allocator(**options) -> SparsityAllocator:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 24), nn.Linear(24, 16))
    add_adapters(model, dict(rank=4), targets=["0", "1"])
    return SparsityAllocator(model, total_epochs=10, due_at=0.1, **options)


def test_all_processes_do_as_the_first(monkeypatch):
    """Scores that differ by a rounding, on either side of the bound, part no two processes."""
    first, second = allocator(), allocator()
    scores = {first: [[1.0, 1.0], [1.0, 2.0], [1.0, 2.1]], second: [[1.0, 1.0]] * 3}
    for epoch in (1, 2, 3):
        sent = []
        for process, said in scores.items():
            monkeypatch.setattr(
                process.tracker, "scores", lambda _, said=said, e=epoch: said[e - 1]
            )
        due = first.reallocate(epoch, lambda tensor, sent=sent: sent.append(tensor.clone()))
        assert second.reallocate(epoch, lambda tensor, sent=sent: tensor.copy_(sent[0])) == due
        counts = [[adapter.num_nonzero for adapter in p.adapters] for p in (first, second)]
        assert counts[0] == counts[1] and sum(counts[0]) == first.budget(epoch)
    assert first.reallocations == second.reallocations == 2  # the third moves too little


def test_matrices_that_do_not_compete_follow_the_budget_alone():
    uniform = allocator(mode="uniform")
    assert uniform.reallocate(1) and not uniform.reallocate(2)
    assert uniform.moved == 0 and uniform.in_force == uniform.budget(2)
