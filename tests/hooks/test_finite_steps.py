"""One bad image costs one step; a run that diverged ends, and keeps its last good checkpoint."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import nn

import snella_seg.register  # noqa: F401
from snella_seg.budget import ImportanceTracker
from snella_seg.hooks import FiniteStepsHook, TrainingDiverged
from snella_seg.hooks.checkpoint import not_finite
from snella_seg.inject import add_adapters, freeze_base


class Normed(BaseModel):
    """An adapted layer and a head that keeps running statistics."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 16))
        add_adapters(self.backbone, dict(rank=4), targets=["0", "2"])
        freeze_base(self.backbone)
        self.norm, self.head = nn.BatchNorm1d(16), nn.Linear(16, 1)

    def forward(self, inputs, data_samples, mode="tensor"):
        target = torch.stack([sample.target for sample in data_samples])
        error = self.head(self.norm(self.backbone(torch.stack(inputs)))) - target
        return dict(loss=error.square().mean()) if mode == "loss" else [error]


class Poisoned(torch.utils.data.Dataset):
    """Twelve samples, of which some are NaN."""

    metainfo = dict(classes=("x",))

    def __init__(self, bad=()):
        self.bad = bad

    def __len__(self):
        return 12

    def __getitem__(self, index):
        x = torch.randn(8, generator=torch.Generator().manual_seed(index))
        target = x.sum(0, keepdim=True)
        x = x * float("nan") if index in self.bad else x
        sample = SimpleNamespace(target=target, img_path=f"image_{index}.png")
        return dict(inputs=x, data_samples=sample)


def train(work_dir, bad=(), max_iters=12, model=None, optim=None, **options):
    runner = Runner(
        model=model or Normed(),
        work_dir=str(work_dir),
        train_cfg=dict(type="IterBasedTrainLoop", max_iters=max_iters),
        train_dataloader=dict(
            batch_size=4,
            num_workers=0,
            dataset=Poisoned(bad),
            sampler=dict(type="InfiniteSampler", shuffle=False),
            collate_fn=dict(type="pseudo_collate"),
        ),
        optim_wrapper={"optimizer": dict(type="AdamW", lr=3e-3), **(optim or {})},
        default_hooks=dict(
            checkpoint=dict(
                type="SnellaCheckpointHook", interval=1, by_epoch=False, max_keep_ckpts=2
            ),
            logger=dict(type="LoggerHook", interval=100),
        ),
        custom_hooks=[
            dict(
                type="SparsityAllocationHook",
                **(options.pop("allocation", None) or dict(target_sparsity=0.5, interval=3)),
            ),
            *options.pop("hooks", []),
        ],
        experiment_name=f"finite_{np.random.default_rng().integers(1 << 60)}",
        log_level="WARNING",
        randomness=dict(seed=1),
        **options,
    )
    runner.train()
    return runner


def hook_of(runner):
    return next(hook for hook in runner.hooks if isinstance(hook, FiniteStepsHook))


def log_of(work_dir):
    return "".join(path.read_text() for path in work_dir.glob("*/*.log"))


def test_a_bad_image_costs_one_step(tmp_path):
    runner = train(tmp_path, bad=(5,))  # in the second batch of three
    log = log_of(tmp_path)
    assert log.count("was skipped") == 4
    assert "4 optimizer steps in 12 iterations were skipped" in log
    assert "image_5.png" in log and "image_0.png" not in log
    assert not not_finite(runner.model)
    tracker = next(h.allocator.tracker for h in runner.hooks if hasattr(h, "allocator"))
    assert all(t.isfinite().all() and t.any() for t in tracker.average)


def test_a_skipped_step_changes_nothing(tmp_path):
    dense = dict(allocation="fixed", target_sparsity=0.0)
    skipped = train(tmp_path, bad=(4,), max_iters=4, allocation=dense).model.state_dict()
    model, data = Normed(), Poisoned()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for batch in (0, 2, 3):  # the same batches, the second left out
        samples = [data[(4 * batch + i) % 12] for i in range(4)]
        inputs, targets = ([s[key] for s in samples] for key in ("inputs", "data_samples"))
        optimizer.zero_grad()
        model(inputs, targets, "loss")["loss"].backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(skipped[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bad", [(1,), (1, 5), (1, 9)])
def test_a_step_of_several_batches_is_counted_once(tmp_path, bad):
    runner = train(tmp_path, bad=bad, max_iters=6, optim=dict(accumulative_counts=3))
    log = log_of(tmp_path)
    assert hook_of(runner).skipped == 2 and log.count("was skipped") == 2
    assert "step of iteration 3 was" in log and "step of iteration 6 was" in log
    named = {i for i in range(12) if f"image_{i}.png" in log}
    assert named == {4 * (i // 4) + j for i in bad for j in range(4)}  # whole batches


def test_a_skipped_step_of_several_batches_changes_nothing(tmp_path):
    """Running statistics are those before the first batch of the step, not of the last."""
    dense = dict(allocation="fixed", target_sparsity=0.0)
    accumulate = dict(accumulative_counts=3)
    skipped = train(tmp_path / "a", bad=(9,), max_iters=3, allocation=dense, optim=accumulate)
    fresh = Normed().state_dict()
    assert all(torch.equal(fresh[k], v) for k, v in skipped.model.state_dict().items())


class Shouting(Normed):
    """The loss of the second batch is infinite, and its gradients are not."""

    def forward(self, inputs, data_samples, mode="tensor"):
        found = super().forward(inputs, data_samples, mode)
        if any(sample.img_path == "image_4.png" for sample in data_samples):
            found["loss"] = found["loss"] + float("inf")
        return found


def test_a_lost_loss_over_finite_gradients_costs_no_step(tmp_path):
    shouting = train(tmp_path / "a", model=Shouting(), hooks=[dict(type="FiniteStepsHook")])
    calm = train(tmp_path / "b").model.state_dict()
    assert all(torch.equal(calm[k], v) for k, v in shouting.model.state_dict().items())
    log = log_of(tmp_path / "a")
    assert log.count("so the step was taken (images: image_4.png, image_5.png") == 4
    assert "skipped" not in log
    assert "4 optimizer steps in 12 iterations were taken though a loss was not finite" in log
    assert (hook_of(shouting).lost, hook_of(shouting).skipped) == (4, 0)


@OPTIM_WRAPPERS.register_module(force=True)
class Scaled(OptimWrapper):
    """AmpOptimWrapper's use of a GradScaler, where there is no GPU."""

    def __init__(self, init_scale, **kwargs):
        super().__init__(**kwargs)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)

    def backward(self, loss, **kwargs):
        self.scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs):
        self.scaler.step(self.optimizer)
        self.scaler.update()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "scale, bad, skipped",
    [(1.0, (5,), 4), (2.0**120, (), 0)],
    ids=["bad image", "scale that is sought"],
)
def test_under_a_grad_scaler(tmp_path, fused, scale, bad, skipped):
    optim = dict(type="Scaled", init_scale=scale)
    optim["optimizer"] = dict(type="AdamW", lr=3e-3, fused=fused)
    runner = train(tmp_path, bad=bad, optim=optim)
    assert runner.optim_wrapper.scaler.get_scale() < scale  # some steps were left out
    assert hook_of(runner).skipped == skipped
    assert not not_finite(runner.model)


def test_a_run_that_diverged_ends_and_keeps_its_checkpoints(tmp_path):
    with pytest.raises(TrainingDiverged, match="3 steps in a row.*backbone_lr.*--resume"):
        train(
            tmp_path,
            bad=range(12),
            hooks=[dict(type="FiniteStepsHook", patience=3)],
        )


def test_a_ruined_model_is_not_saved_and_removes_nothing(tmp_path):
    class Ruin(FiniteStepsHook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            super().after_train_iter(runner, batch_idx, data_batch, outputs)
            if runner.iter == 5:
                with torch.no_grad():
                    runner.model.head.weight.fill_(float("nan"))

    train(tmp_path, max_iters=10, hooks=[Ruin()])
    assert sorted(p.name for p in tmp_path.glob("iter_*.pth")) == ["iter_4.pth", "iter_5.pth"]
    assert (tmp_path / "last_checkpoint").read_text().endswith("iter_5.pth")
    assert "head.weight is not finite" in log_of(tmp_path)


def test_importances_that_are_not_finite_are_refused():
    tracker = ImportanceTracker(Normed())
    state = tracker.state_dict()
    state["average"][0][0] = float("nan")
    with pytest.raises(ValueError, match="not finite.*earlier checkpoint"):
        tracker.load_state_dict(state)


@pytest.mark.parametrize("patience", [0, True, 1.5, "3"])
def test_patience_is_a_positive_number_of_steps(patience):
    with pytest.raises(ValueError, match="patience must be"):
        FiniteStepsHook(patience)
