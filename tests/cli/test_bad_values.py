"""Values that no option can have, by the hundred: each ends in one line that names option or value.

They are overrides of the tiny config, from which most are refused before anything is built.
"""

import pytest
from helpers import refused

REFUSED = """
model.backbone.adapter.rank=0
model.backbone.adapter.rank=-4
model.backbone.adapter.rank=2.5
model.backbone.adapter.rank=None
model.backbone.adapter.heads=0
model.backbone.adapter.heads=3
model.backbone.adapter.heads=two
model.backbone.adapter.scale=big
model.backbone.adapter.scale=nan
model.backbone.adapter.initial_sparsity=-0.1
model.backbone.adapter.initial_sparsity=half
model.backbone.adapter.dropout=2
model.backbone.adapter=4
model.backbone.method=snela
model.backbone.method=3
model.backbone.targets=5
model.backbone.trainable=5
model.backbone.fused_attention=no
model.backbone.recompute=no
model.backbone.base_checkpoint=none.pth
model.backbone.base_checkpoint=5
model.backbone.check_base=no
model.backbone.bands=median
model.backbone.pretrained=none.pth
model.backbone.init_cfg=none.pth
model.backbone.norm_eval=True
model.backbone.backbone=vit
model.backbone.backbone.type=VisionTransfomer
model.backbone.backbone.num_layers=two
model.backbone.backbone.num_heads=5
model.backbone.backbone.num_heads=0
model.backbone.backbone.embed_dims=0
model.backbone.backbone.patch_size=0
model.backbone.backbone.patch_size=eight
model.backbone.backbone.patch_size=128
model.backbone.backbone.img_size=sixty
model.backbone.backbone.img_size=0
model.backbone.backbone.in_channels=4
model.backbone.backbone.with_cp=yes
model.backbone.backbone.drop_rate=2
model.backbone.backbone.out_indices=7
model.backbone.backbone.out_indices=last
model.backbone.backbone.act_cfg.type=Gelu
model.decode_head.num_classes=0
model.decode_head.num_classes=-1
model.decode_head.channels=0
model.decode_head.align_corners=no
model.decode_head.dropout_ratio=2
model.decode_head.dropout_ratio=none
model.decode_head.in_index=5
model.decode_head.in_channels=32
model.decode_head.loss_decode.type=CrossEntropy
model.decode_head.loss_decode.loss_weight=one
model.decode_head.ignore_index=x
model.decode_head.type=UperHead
model.auxiliary_head.num_convs=-1
model.auxiliary_head.kernel_size=0
model.neck.out_channels=16
model.neck.type=MultilevelNeck
model.type=EncodeDecoder
model.data_preprocessor.mean=1,2
model.data_preprocessor.bgr_to_rgb=maybe
model.data_preprocessor.size_divisor=7
train_dataloader.batch_size=0
train_dataloader.batch_size=-1
train_dataloader.batch_size=two
train_dataloader.num_workers=-1
train_dataloader.num_workers=many
train_dataloader.btach_size=2
train_dataloader.persistent_workers=True
train_dataloader.sampler.type=InfinteSampler
train_dataloader.sampler.shuffle=yes
train_dataloader.dataset.type=ADE20K
train_dataloader.dataset.img_suffix=.bmp
train_dataloader.dataset.seg_map_suffix=.tif
train_dataloader.dataset.indices=0
train_dataloader.dataset.metainfo.classes=wall
train_dataloader.dataset.reduce_zero_label=no
train_dataloader.dataset.pipeline.0.type=LoadImage
train_dataloader.dataset.pipeline.2.prob=2
train_dataloader.dataset.pipeline.2.prob=often
train_dataloader.dataset.ignore_index=none
val_dataloader.batch_size=0
val_evaluator=None
val_evaluator.type=IOUMetric
val_cfg=None
optim_wrapper.type=OptimWraper
optim_wrapper.constructor=SnelaConstructor
optim_wrapper.optimizer.lr=-1
optim_wrapper.optimizer.lr=fast
optim_wrapper.optimizer.lr=nan
optim_wrapper.optimizer.weight_decay=-1
optim_wrapper.optimizer.weight_decay=some
optim_wrapper.optimizer.momentum=0.9
optim_wrapper.accumulative_counts=-1
optim_wrapper.accumulative_counts=two
optim_wrapper.clip_grad=1
optim_wrapper.clip_grad.max_norm=one
optim_wrapper.clip_grad.max_nrom=1
optim_wrapper.paramwise_cfg=1
optim_wrapper.paramwise_cfg.backbone_lr=-1
optim_wrapper.paramwise_cfg.head_lr_mult=x
optim_wrapper.loss_scale=dynamic
optim_wrapper=None
train_cfg.max_iters=0
train_cfg.max_iters=-5
train_cfg.max_iters=eight
train_cfg.max_iters=8.5
train_cfg.val_interval=often
train_cfg.type=IterTrainLoop
train_cfg.max_epochs=3
train_cfg=None
param_scheduler.type=PolyLr
param_scheduler=poly
default_hooks.checkpoint.interval=often
default_hooks.checkpoint.max_keep_ckpts=some
default_hooks.checkpoint.by_epoch=no
default_hooks.checkpoint.type=SnellaCheckpointHok
default_hooks.checkpoint=5
default_hooks.logger.interval=0
default_hooks.logger.interval=two
default_hooks.visualization.type=SegVizHook
custom_hooks=5
custom_hooks=SparsityAllocationHook
custom_hooks.0.type=SparsityAlocationHook
custom_hooks.0.target_sparsity=1.0
custom_hooks.0.target_sparsity=-0.5
custom_hooks.0.target_sparsity=most
custom_hooks.0.interval=-2
custom_hooks.0.interval=2.5
custom_hooks.0.schedule=quartic
custom_hooks.0.reallocate=never
custom_hooks.0.due_at=2
custom_hooks.0.warmup_epochs=-1
custom_hooks.0.final_epochs=-1
custom_hooks.0.min_density=1
custom_hooks.0.beta1=1.5
custom_hooks.0.beta2=-1
custom_hooks.0.beta1=x
custom_hooks.0.allocation=fair
custom_hooks.0.importance=5
custom_hooks.0.intervals=2
randomness.sed=1
randomness=3
log_level=LOUD
log_processor.type=LogProcesor
visualizer.type=SegLocalVisualiser
env_cfg.mp_cfg.mp_start_method=forkk
load_from=none.pth
compile=5
compile.backend=none
compile.bakend=eager
runner_type=Runer
model.backbone.targets=q,kk
model.backbone.backbone.num_layers=0
model.backbone.backbone.embed_dims=33
model.backbone.backbone.drop_path_rate=1.5
model.backbone.backbone.norm_cfg.type=LM
model.decode_head.num_classes=four
model.decode_head.channels=many
model.decode_head.pool_scales=1
model.decode_head.norm_cfg.type=BM
model.decode_head.threshold=2
model.neck.scales=2
model.data_preprocessor.size=64
model.data_preprocessor.mean=127
model.data_preprocessor.std=0,0,0
model.test_cfg.mode=slid
model.test_cfg.mode=slide
train_dataloader.dataset.data_root=5
train_dataloader.dataset.metainfo.palette=1
train_dataloader.dataset.pipeline=load
train_dataloader.dataset.pipeline.2.direction=up
val_evaluator.iou_metrics=mIOU
optim_wrapper.optimizer.type=AdamWW
optim_wrapper.optimizer.betas=1
optim_wrapper.optimizer.betas=2,3
optim_wrapper.clip_grad.max_norm=-1
train_cfg.val_interval=0
default_hooks.checkpoint.save_best=mIOU
default_hooks.checkpoint.rule=biggest
randomness.seed=x
log_processor.window_size=0
log_processor.by_epoch=maybe
default_scope=mmsegg
custom_imports.imports=nothing.here
prepare=nothing:here
model.train_cfg=5
model.test_cfg=5
val_dataloader=None
train_cfg.val_interval=-1
custom_hooks.0.min_density=2
randomness.seed=-1
log_processor.by_epcoh=False
custom_imports=5
prepare=math:nothing
prepare=5
optim_wrapper.optimizer.eps=-1
""".split()

#: What looks wrong and means something: no checkpoint but the last, a rate for those who dare,
#: floors that are lowered evenly where the budget cannot pay for them.
LEGAL = """
default_hooks.checkpoint.interval=0
optim_wrapper.optimizer.lr=1e6
custom_hooks.0.min_density=0.9
model.test_cfg.mode=whole
optim_wrapper.clip_grad.max_norm=inf
default_hooks.checkpoint.save_best=mIoU
default_hooks.checkpoint.save_best=auto
custom_imports.imports=json
""".split()


@pytest.mark.parametrize("override", REFUSED)
def test_a_value_is_refused(tool, tiny_config_file, tmp_path, override):
    key, value = override.split("=", 1)
    done = tool("train", tiny_config_file, "--work-dir", tmp_path, "--cfg-options", override)
    parts = (*key.split("."), *value.split(","), value)
    words = [part for part in parts if not part.isdigit() or part == value]
    line = done.err.strip().splitlines()[-1] if done.err.strip() else ""
    refused(done, next((word for word in reversed(words) if word in line), key))
    assert not list(tmp_path.rglob("*.pth*"))


@pytest.mark.parametrize("override", LEGAL)
def test_a_value_is_taken(tool, tiny_config_file, tmp_path, override):
    done = tool("train", tiny_config_file, "--work-dir", tmp_path, "--cfg-options", override)
    assert done.code == 0, done.err
