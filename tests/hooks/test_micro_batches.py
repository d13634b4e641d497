"""Runs with accumulative_counts: what the hook tells adapters, and what comes of it."""

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

import snella_seg.register  # noqa: F401
from snella_seg.engine import native
from snella_seg.inject import add_adapters, freeze_base, list_adapters, waiting_sums

try:
    native.library()
except native.Unavailable as reason:
    pytest.skip(f"the library cannot be had: {reason}", allow_module_level=True)


class Wide(BaseModel):
    """Two adapted layers, sparse from the start, and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(40, 70), nn.GELU(), nn.Linear(70, 40))
        options = dict(rank=8, sparsifier="normalised", spread=0.3, initial_sparsity=0.8)
        add_adapters(self.backbone, options, targets=["0", "2"])
        freeze_base(self.backbone)
        self.head = nn.Linear(40, 1)

    def forward(self, inputs, target, mode="tensor"):
        error = self.head(self.backbone(inputs)) - target
        return dict(loss=error.square().mean()) if mode == "loss" else [error]


class Numbers(torch.utils.data.Dataset):
    metainfo = dict(classes=("x",))

    def __len__(self):
        return 64

    def __getitem__(self, index):
        x = torch.randn(40, generator=torch.Generator().manual_seed(index))
        return dict(inputs=x, target=x[:4].sum(0, keepdim=True))


class Each(Hook):
    """Tells adapters nothing, or notes after which iterations gradients wait."""

    priority = "LOW"

    def __init__(self, told=True):
        self.told, self.waiting = told, []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if not self.told:
            for adapter in list_adapters(runner.model).values():
                adapter.accumulator = None

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.waiting.append(len(waiting_sums(runner.model)))


def train(work_dir, max_iters=14, told=True, resume=False, interval=5, counts=3):
    watch = Each(told)
    runner = Runner(
        model=Wide(),
        work_dir=str(work_dir),
        train_cfg=dict(type="IterBasedTrainLoop", max_iters=max_iters),
        train_dataloader=dict(
            batch_size=4,
            num_workers=0,
            dataset=Numbers(),
            sampler=dict(type="InfiniteSampler", shuffle=True),
            collate_fn=dict(type="default_collate"),
        ),
        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=3e-3), accumulative_counts=counts),
        default_hooks=dict(
            checkpoint=dict(type="SnellaCheckpointHook", interval=4, by_epoch=False),
            logger=dict(type="LoggerHook", interval=100),
        ),
        custom_hooks=[
            dict(type="SparsityAllocationHook", target_sparsity=0.9, interval=interval),
            watch,
        ],
        experiment_name=f"sums_{np.random.default_rng().integers(1 << 60)}",
        log_level="WARNING",
        randomness=dict(seed=1),
        resume=resume,
    )
    runner.train()
    return runner.model.state_dict(), watch.waiting


def test_gradients_wait_within_a_step_and_never_over_a_reallocation(tmp_path):
    _, waiting = train(tmp_path)
    #    steps end with the third of each, and with the last; reallocations with the fifth and tenth
    assert waiting == [2, 2, 0, 2, 0, 0, 2, 2, 0, 0, 2, 0, 2, 0]


def test_one_micro_batch_a_step_keeps_nothing(tmp_path):
    _, waiting = train(tmp_path, counts=1)
    assert waiting == [0] * 14


def test_a_run_ends_where_one_ends_that_makes_all_anew(tmp_path):
    alone, nothing = train(tmp_path / "alone", told=False)
    together, _ = train(tmp_path / "together")
    assert not any(nothing)
    start = Wide().state_dict()
    for name, value in together.items():
        torch.testing.assert_close(value, alone[name], rtol=1e-3, atol=1e-4)
        if "factors" in name:
            assert (value - start[name]).abs().max() > 1e-3


@pytest.mark.parametrize("native_again", [True, False], ids=["native", "plain"])
def test_resumed_within_a_step(tmp_path, native_again, monkeypatch):
    """The checkpoint of iteration 8 holds the sums of two micro-batches."""
    expected, _ = train(tmp_path / "whole", 14)
    train(tmp_path / "cut", 14)
    for late in ("iter_12.pth", "iter_14.pth"):
        (tmp_path / "cut" / late).unlink(missing_ok=True)
    (tmp_path / "cut" / "last_checkpoint").write_text(str(tmp_path / "cut" / "iter_8.pth"))
    saved = torch.load(tmp_path / "cut" / "iter_8.pth", weights_only=False)
    assert len(saved["snella_gradient_sums"]) == 2
    if not native_again:
        monkeypatch.setenv("SNELLA_NATIVE", "0")
    found, waiting = train(tmp_path / "cut", 14, resume=True)
    same = all(torch.equal(found[name], value) for name, value in expected.items())
    logs = "".join(p.read_text() for p in (tmp_path / "cut").glob("*/*.log"))
    assert same == native_again
    assert ("waited for more micro-batches are lost" in logs) != native_again
    assert any(waiting) == native_again
