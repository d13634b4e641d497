# The embedded demo's schedule: 250 iterations of 8 images and one validation at the end.
custom_imports = dict(imports=["snella_seg.register", "snella_seg.lab.demo.demo_report"])
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="SnellaOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=3e-3, betas=(0.9, 0.99), weight_decay=0.01),
    paramwise_cfg=dict(
        flat_decay_mult=0.0,
        custom_keys=dict(adapters=dict(lr_mult=3.0), cls_token=dict(decay_mult=0.0)),
    ),
)
train_cfg = dict(type="IterBasedTrainLoop", max_iters=250, val_interval=250)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
param_scheduler = [
    dict(type="LinearLR", start_factor=0.03, by_epoch=False, begin=0, end=30),
    dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=False, begin=30, end=250),
]
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="SnellaCheckpointHook", by_epoch=False, interval=250),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="SegVisualizationHook"),
)
randomness = dict(seed=0)
