"""What SnellaFullyShard is refused with; tests/cli/test_fully_shard.py trains with it."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import CheckpointHook, EMAHook
from torch import nn

from snella_seg.hooks import SnellaCheckpointHook
from snella_seg.hooks.sharding import check_sharding
from snella_seg.models import SnellaFullyShard
from snella_seg.models.fully_shard import _placement


def runner_of(model, hooks=(), frozen=False, **cfg) -> SimpleNamespace:
    parameter = nn.Parameter(torch.zeros(2), requires_grad=not frozen)
    wrapper = SimpleNamespace(optimizer=torch.optim.SGD([parameter], lr=1.0))
    return SimpleNamespace(model=model, hooks=hooks, cfg=cfg, optim_wrapper=wrapper)


@pytest.mark.parametrize("name", ["FullyShardedDataParallel", "DeepSpeedEngine"])
def test_wrappers_that_shard_adapters_are_refused(name):
    wrapper = type("MMWrapper", (type(name, (nn.Module,), {}),), {})
    with pytest.raises(ValueError, match="MMWrapper shards all parameters.*'SnellaFullyShard'"):
        check_sharding(runner_of(wrapper()))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(hooks=[CheckpointHook()]), "CheckpointHook saves from one process"),
        (dict(hooks=[EMAHook.__new__(EMAHook)]), "EMAHook keeps the whole model a second time"),
        (dict(compile=True), "compile does not go with SnellaFullyShard"),
        (dict(frozen=True), "the optimizer holds frozen parameters"),
    ],
)
def test_what_does_not_go_with_a_sharded_base_is_refused(options, said):
    sharded = SnellaFullyShard.__new__(SnellaFullyShard)
    with pytest.raises(ValueError, match=said):
        check_sharding(runner_of(sharded, **options))
    check_sharding(runner_of(nn.Linear(1, 1), **options))
    check_sharding(runner_of(sharded, hooks=[SnellaCheckpointHook()]))


needs_fsdp2 = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7), reason="needs torch 2.7 or newer"
)


@needs_fsdp2
def test_a_model_without_anything_frozen_is_refused():
    with pytest.raises(ValueError, match="nothing is frozen: use MMDistributedDataParallel"):
        SnellaFullyShard(nn.Linear(2, 2))


@needs_fsdp2
def test_a_torch_that_cannot_leave_parameters_out_is_refused(monkeypatch):
    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", lambda module: module)
    with pytest.raises(ValueError, match="needs torch 2.7 or later"):
        SnellaFullyShard(nn.Linear(2, 2))


def test_a_state_dict_of_shares_is_refused():
    share, base = SimpleNamespace(full_tensor=None), nn.Linear(1, 1)
    model = SimpleNamespace(_whole={})
    with pytest.raises(RuntimeError, match="a.weight is sharded .* within SnellaFullyShard.whole"):
        SnellaFullyShard._put_whole(model, base, {"a.weight": share}, "a.")
    model._whole, state = {base: {"weight": 1}}, {"a.weight": share, "b": 2}
    SnellaFullyShard._put_whole(model, base, state, "a.")
    assert state == {"a.weight": 1, "b": 2}


@pytest.mark.parametrize(
    ("shape", "processes", "dim"), [((6, 4), 2, 0), ((1, 65, 32), 2, 2), ((3, 5), 2, 0)]
)
def test_tensors_are_cut_evenly_where_they_can_be(shape, processes, dim):
    assert _placement(torch.empty(shape), processes).dim == dim
