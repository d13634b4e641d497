# The embedded demo's source model: everything is trained, on the day scenes.
_base_ = __import__("snella_seg").stock("_base_/default_runtime.py") + [
    "./demo_scenes.py",
    "./demo_vit_upernet.py",
    "./demo_schedule.py",
]
train_dataloader = dict(dataset=dict(data_root="data/snella_demo/scenes/source"))
val_dataloader = dict(dataset=dict(data_root="data/snella_demo/scenes/source"))
train_cfg = dict(max_iters=400, val_interval=400)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.03, by_epoch=False, begin=0, end=30),
    dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=False, begin=30, end=400),
]
default_hooks = dict(checkpoint=dict(interval=400))
