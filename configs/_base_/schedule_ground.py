# 240 iterations, AdamW, a tenth of warm-up, cosine. `--iters` of compare scales it.
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="SnellaOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=1e-2, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(
        flat_decay_mult=0.0,
        backbone_lr=3e-2,
        head_lr=1e-2,
        custom_keys=dict(cls_token=dict(decay_mult=0.0)),
    ),
)
train_cfg = dict(type="IterBasedTrainLoop", max_iters=240, val_interval=240)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=24),
    dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=False, begin=24, end=240),
]
custom_hooks = [dict(type="SparsityAllocationHook", target_sparsity=0.8, interval=24)]
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=24, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="SnellaCheckpointHook", by_epoch=False, interval=240),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="SegVisualizationHook"),
)
randomness = dict(seed=0)
