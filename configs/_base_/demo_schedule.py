# The embedded demo's schedule: 400 iterations of 16 images, quiet, one validation at the end.
custom_imports = dict(imports=["snella_seg.register"])
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="SnellaOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01),
    paramwise_cfg=dict(flat_decay_mult=0.0),
)
train_cfg = dict(type="IterBasedTrainLoop", max_iters=400, val_interval=400)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=30),
    dict(type="PolyLR", eta_min=0.0, power=0.9, by_epoch=False, begin=30, end=400),
]
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=400),
    sampler_seed=dict(type="DistSamplerSeedHook"),
)
randomness = dict(seed=0)
