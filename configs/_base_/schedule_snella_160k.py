# Stock 160k schedule with what SNELLA needs: its optimizer, its registration and its hooks.
_base_ = __import__("snella_seg").stock("_base_/schedules/schedule_160k.py")

custom_imports = dict(imports=["snella_seg.register"])
custom_hooks = [dict(type="SparsityAllocationHook", target_sparsity=0.8)]

# Slim checkpoints (slim=False for whole ones) from which runs resume exactly.
default_hooks = dict(checkpoint=dict(type="SnellaCheckpointHook"))

# Factors learn ten times as fast as heads; 1-D parameters do not decay.
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    constructor="SnellaOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(
        flat_decay_mult=0.0,
        custom_keys=dict(adapters=dict(lr_mult=10.0), cls_token=dict(decay_mult=0.0)),
    ),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=160000),
]
