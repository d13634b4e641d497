"""Runs of a Runner on a toy model, for tests of hooks."""

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

import snella_seg.register  # noqa: F401
from snella_seg.inject import add_adapters, freeze_base

SIZE = 12  # images in the dataset; 4 a batch make 3 iterations an epoch


class Toy(BaseModel):
    """Two adapted linear layers and a head."""

    def __init__(self, targets=("0", "2"), seed=0, widths=(8, 24, 16), **adapter):
        super().__init__()
        torch.manual_seed(seed)
        first, hidden, last = widths
        self.backbone = nn.Sequential(nn.Linear(first, hidden), nn.GELU(), nn.Linear(hidden, last))
        add_adapters(self.backbone, dict(rank=4) | adapter, targets=list(targets))
        freeze_base(self.backbone)
        self.head = nn.Linear(last, 1)

    def forward(self, inputs, target, mode="tensor"):
        error = self.head(self.backbone(inputs)) - target
        return dict(loss=error.square().mean()) if mode == "loss" else [error]


class Numbers(torch.utils.data.Dataset):
    """Vectors of a width, and their sums."""

    metainfo = dict(classes=("x",))

    def __init__(self, width):
        self.width = width

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        x = torch.randn(self.width, generator=torch.Generator().manual_seed(index))
        return dict(inputs=x, target=x.sum(0, keepdim=True))


def train(
    work_dir,
    max_iters=18,
    by_epoch=False,
    model=None,
    optim=None,
    runner=None,
    batch_size=4,
    checkpoint="CheckpointHook",
    every=3,
    **hook,
):
    """A Runner that has trained; ``hook`` are options of SparsityAllocationHook."""
    model = model or Toy()
    if by_epoch:
        loop = dict(type="EpochBasedTrainLoop", max_epochs=max_iters // 3)
    else:
        loop = dict(type="IterBasedTrainLoop", max_iters=max_iters)
    sampler = "DefaultSampler" if by_epoch else "InfiniteSampler"
    extra = (runner or {}).pop("extra", [])
    made = Runner(
        model=model,
        work_dir=str(work_dir),
        train_cfg=loop,
        train_dataloader=dict(
            batch_size=batch_size,
            num_workers=0,
            dataset=Numbers(model.backbone[0].in_features),
            sampler=dict(type=sampler, shuffle=True),
            collate_fn=dict(type="default_collate"),
        ),
        optim_wrapper={"optimizer": dict(type="AdamW", lr=3e-3), **(optim or {})},
        default_hooks=dict(
            checkpoint=dict(type=checkpoint, interval=every, by_epoch=False),
            logger=dict(type="LoggerHook", interval=100),
        ),
        custom_hooks=[dict(type="SparsityAllocationHook", **hook), *extra],
        experiment_name=f"toy_{work_dir.name}_{np.random.default_rng().integers(1 << 60)}",
        log_level="WARNING",
        randomness=dict(seed=1),
        **(runner or {}),
    )
    made.train()
    return made
