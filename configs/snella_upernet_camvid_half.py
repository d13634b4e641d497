# A lighter CamVid for comparing methods on a CPU: images at half size (240x180), scored at
# 480x360; maps of 1/8 at most; 8 epochs. docs/results.md was made with it.
_base_ = "./snella_upernet_camvid.py"

scale, crop_size = (240, 180), (160, 224)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=scale, ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=scale, keep_ratio=True),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(**loader, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(**loader, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(method="snella", backbone=dict(img_size=crop_size)),
    neck=dict(out_channels=64, scales=[2, 1, 0.5, 0.25]),
    decode_head=dict(in_channels=[64, 64, 64, 64]),
    auxiliary_head=dict(in_channels=64),
)
# the rates that docs/results.md found, for factors and heads
optim_wrapper = dict(
    optimizer=dict(lr=1e-2), paramwise_cfg=dict(custom_keys=dict(adapters=dict(lr_mult=1.0)))
)
train_cfg = dict(max_iters=368, val_interval=92)  # 46 iterations are an epoch
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=46),
    dict(type="PolyLR", eta_min=0.0, power=0.9, by_epoch=False, begin=46, end=368),
]
default_hooks = dict(checkpoint=dict(interval=368))
