"""A delta that has outgrown its weight is told of once, and with a remedy."""

import torch
from torch import nn

from snella_seg.budget import SizeGuard
from snella_seg.inject import add_adapters, list_adapters

A, B, ZERO = "a.a", "b.b", "zero.zero"


def guarded():
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(7, 5), "b": nn.Linear(5, 9), "zero": nn.Linear(5, 9)})
    nn.init.zeros_(model["zero"].weight)
    add_adapters(model, dict(rank=4), ["a", "b", "zero"])
    return model, SizeGuard(model)


def test_it_measures_frozen_weights():
    model, guard = guarded()
    assert list(guard.base) == list(list_adapters(model)) == [A, B, ZERO]
    with torch.no_grad():
        list_adapters(model)[A].in_factors += 1.0  # the delta must not count as base
    assert SizeGuard(model).base == guard.base
    assert guard.base[A] == float(model["a"].base_weight.norm()) and not guard.base[ZERO]


def test_it_speaks_once():
    _, guard = guarded()
    small = {name: 0.9 * norm for name, norm in guard.base.items()} | {ZERO: 1.0}
    assert guard.check(small) is None
    large = small | {A: 2.0 * guard.base[A]}
    warning = guard.check(large)
    assert "1 of 3 matrices" in warning and A in warning and "backbone_lr" in warning
    assert guard.check(large) is None


def test_nan_counts_as_larger():
    _, guard = guarded()
    assert "norms nan" in guard.check(guard.base | {B: float("nan")})
