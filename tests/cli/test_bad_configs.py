"""What a config asks for that cannot be meant: one line, exit status 1, nothing half-written."""

from pathlib import Path

import pytest
from helpers import refused

HOOK = "custom_hooks = [dict(type='SparsityAllocationHook', {})]"
PARAMWISE = """
optim_wrapper = dict(constructor='SnellaOptimWrapperConstructor', paramwise_cfg=dict({}))"""

ADVICE = (
    "adapters and their competition need whole ones: leave it out (--launcher then uses "
    "MMDistributedDataParallel), or shard the frozen base by "
    "model_wrapper_cfg=dict(type='SnellaFullyShard')"
)

#: What is tried -> what the config adds, what the line says.
CONFIGS = {
    "rank=100000": (
        "model = dict(backbone=dict(adapter=dict(rank=100000)))",
        "rank=100000 is above the smaller side of every adapted matrix: the largest sensible one",
    ),
    "full with a rank": (
        "model = dict(backbone=dict(method='full'))",
        "method='full' adapts no matrix, so adapter.rank would have no effect",
    ),
    "frozen with trainable": (
        "model = dict(backbone=dict(method='frozen', adapter=None, trainable=['cls_token']))",
        "method='frozen' says itself what is trained, got trainable=",
    ),
    "lora with a kernel": (
        "model = dict(backbone=dict(method='lora', adapter=dict(kernel='mixed')))",
        "method='lora' has kernel 'linear', got adapter.kernel='mixed'",
    ),
    "snell with competition": (
        "model = dict(backbone=dict(method='snell'))\n"
        + HOOK.format("interval=2, allocation='competition'"),
        "method='snell' has allocation 'fixed', got allocation='competition'",
    ),
    "initial above target": (
        "model = dict(backbone=dict(adapter=dict(initial_sparsity=0.9)))",
        "adapter.initial_sparsity 0.9 is above target_sparsity 0.5",
    ),
    "final_epochs=1.5": (HOOK.format("interval=2, final_epochs=1.5"), "final_epochs must be int"),
    "head's in_channels": (
        "model = dict(decode_head=dict(in_channels=[32, 64]))",
        "model.decode_head.in_channels is [32, 64], the maps that it gets have [32, 32] channels",
    ),
    "head's in_index": (
        "model = dict(auxiliary_head=dict(in_index=3))",
        "model.auxiliary_head takes map 3 of 2",
    ),
    "neck's in_channels": (
        "model = dict(neck=dict(in_channels=[32, 48]))",
        "model.neck.in_channels is [32, 48], the maps that it gets have [32, 32] channels",
    ),
    "out_indices beyond the layers": (
        "model = dict(backbone=dict(backbone=dict(out_indices=(0, 5))))",
        "model.neck takes map 1 of 1",
    ),
    "num_classes=3": (
        "model = dict(decode_head=dict(num_classes=3))",
        "decode_head has 3 classes, the training set names 4: set model.decode_head.num_classes",
    ),
    "two names for four labels": (
        "train_dataloader = dict(dataset=dict(metainfo=dict(classes=('wall', 'sky'))))",
        "decode_head has 4 classes, the training set names 2",
    ),
    "argument of a head": (
        "model = dict(decode_head=dict(dropout_ratios=0.1))",
        "model.decode_head: UPerHead has no argument 'dropout_ratios', did you mean 'dropout_rat",
    ),
    "argument of a backbone": (
        "model = dict(backbone=dict(backbone=dict(drop_path_rates=0.1)))",
        "VisionTransformer has no argument 'drop_path_rates', did you mean 'drop_path_rate'?",
    ),
    "argument of a dataset": (
        "train_dataloader = dict(dataset=dict(img_sufix='.png'))",
        "train_dataloader.dataset: ADE20KDataset has no argument 'img_sufix', did you mean 'img_s",
    ),
    "argument of a metric": (
        "val_evaluator = dict(iou_metric=['mIoU'])",
        "IoUMetric has no argument 'iou_metric', did you mean 'iou_metrics'?",
    ),
    "argument of a hook": (
        "default_hooks = dict(checkpoint=dict(max_keep_ckpt=1))",
        "CheckpointHook has no argument 'max_keep_ckpt', did you mean 'max_keep_ckpts'?",
    ),
    "argument of an optimizer": (
        "optim_wrapper = dict(optimizer=dict(weight_decai=0.1))",
        "AdamW has no argument 'weight_decai', did you mean 'weight_decay'?",
    ),
    "a strategy that shards": (
        "runner_type = 'FlexibleRunner'\nstrategy = dict(type='DeepSpeedStrategy')",
        "strategy asks for DeepSpeedStrategy, which shards parameters; " + ADVICE,
    ),
    "a wrapper that shards": (
        "model_wrapper_cfg = dict(type='MMFullyShardedDataParallel')",
        "model_wrapper_cfg asks for MMFullyShardedDataParallel, which shards parameters; " + ADVICE,
    ),
    "epochs that never end": (
        "train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=2)",
        "an epoch of InfiniteSampler never ends: set train_dataloader.sampler.type to Default",
    ),
    "another strategy that shards": (
        "runner_type = 'FlexibleRunner'\nstrategy = dict(type='FSDPStrategy')",
        "strategy asks for FSDPStrategy, which shards parameters; " + ADVICE,
    ),
    "an optimizer's wrapper that shards": (
        "optim_wrapper = dict(type='DeepSpeedOptimWrapper')",
        "optim_wrapper asks for DeepSpeedOptimWrapper, which shards parameters; " + ADVICE,
    ),
    "text for a hook": (
        "custom_hooks = ['SparsityAllocationHook']",
        "custom_hooks.0 must be a dict, got 'SparsityAllocationHook'",
    ),
    "key at the top": (
        "custom_hook = [dict(type='EMAHook')]",
        "no tool reads the key 'custom_hook', did you mean 'custom_hooks'?",
    ),
    "paramwise_cfg": (
        PARAMWISE.format("backbone_rl=1e-3"),
        "paramwise_cfg has no key 'backbone_rl', did you mean backbone_lr?",
    ),
    "multiplier of custom_keys": (
        PARAMWISE.format("custom_keys=dict(adapters=dict(lr_mul=2.0))"),
        "custom_keys 'adapters' has no key 'lr_mul', did you mean lr_mult?",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_refused_in_a_line(name, tool, tiny_config_file, tmp_path):
    text, message = CONFIGS[name]
    path = tiny_config_file.with_name("derived.py")
    path.write_text(f"_base_ = './{tiny_config_file.name}'\n{text}")
    done = tool("train", path, "--work-dir", tmp_path / "run")
    refused(done, message)
    assert not list((tmp_path / "run").rglob("*.pth*"))


def test_configs_of_mmseg_are_not_refused():
    """A sample of what is meant as it is: heads, backbones and datasets of all kinds."""
    import mmseg
    import mmseg.apis  # noqa: F401  registers all
    from mmengine.config import Config

    from snella_seg.cli.config_checks import check_config

    files = sorted((Path(mmseg.__file__).parent / ".mim/configs").glob("*/*.py"))
    read = 0
    for path in files[::20]:
        try:
            cfg = Config.fromfile(path)
        except (ImportError, FileNotFoundError):
            continue  # of packages that are not there
        check_config(cfg)
        read += 1
    assert read > 10


def test_a_run_cannot_be_resumed_beyond_its_end(tool, tiny_config_file, tmp_path):
    assert tool("train", tiny_config_file, "--work-dir", tmp_path / "run").code == 0
    shorter = ("--cfg-options", "train_cfg.max_iters=6", "custom_hooks.0.interval=2")
    last = tmp_path / "run" / "iter_8.pth"
    done = tool("train", tiny_config_file, "--resume", last, "--work-dir", tmp_path / "b", *shorter)
    refused(done, "the checkpoint is of iteration 8, the run ends at 6: nothing is left to train")
