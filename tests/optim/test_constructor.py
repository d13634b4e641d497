"""The optimizer's constructor: groups, and what it says and does not say."""

import logging

import pytest
import torch
from mmengine.logging import MMLogger
from torch import nn

from snella_seg.inject import add_adapters, freeze_base
from snella_seg.optim import SnellaOptimWrapperConstructor


@pytest.fixture
def lines(monkeypatch) -> list[str]:
    """What mmengine's logger lets through."""
    seen: list[str] = []
    logger = MMLogger.get_instance("optim_test")

    class Collect(logging.Handler):
        def emit(self, record) -> None:
            seen.append(record.getMessage())

    logger.handlers = [Collect()]
    yield seen
    MMLogger._instance_dict.pop("optim_test")


def build(model: nn.Module):
    constructor = SnellaOptimWrapperConstructor(
        dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=0.1, weight_decay=0.01)),
        dict(flat_decay_mult=0.0, custom_keys=dict(adapters=dict(lr_mult=3.0))),
    )
    return constructor(model).optimizer


def test_frozen_parameters_are_left_out_silently_and_later_warnings_are_heard(lines):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    adapters = add_adapters(model, dict(rank=2), ["0"])
    freeze_base(model, ["1"])
    optimizer = build(model)
    assert not any("requires_grad" in line or "paramwise" in line for line in lines)
    MMLogger.get_current_instance().warning("after it")
    assert lines[-1] == "after it"
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    expected = [*adapters["0.0"].parameters(), *model[1].parameters()]
    assert held == {id(p) for p in expected}


def test_parameters_with_the_same_options_share_a_group():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    add_adapters(model, dict(rank=2), ["0"])
    freeze_base(model, ["1"])
    groups = build(model).param_groups
    options = sorted((g["lr"], g["weight_decay"], len(g["params"])) for g in groups)
    # weight and bias of the head; factors; 1-D scalars of the adapter
    assert options == [(0.1, 0.0, 1), (0.1, 0.01, 1), (pytest.approx(0.3), 0.0, 3),
                       (pytest.approx(0.3), 0.01, 2)]  # fmt: skip
    assert all(torch.is_tensor(p) for g in groups for p in g["params"])
