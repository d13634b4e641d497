# SNELLA on a pretrained ViT-Tiny/16 with a small UperNet, CamVid, 12 epochs: runs on a CPU.
_base_ = __import__("snella_seg").stock("_base_/default_runtime.py") + [
    "./_base_/camvid.py",
    "./_base_/upernet_vit_tiny.py",
    "./_base_/schedule_snella_160k.py",
]
model = dict(
    backbone=dict(
        _delete_=True,
        type="SnellaBackbone",
        method="snella_v2",
        backbone={{_base_.model.backbone}},
    ),
    decode_head=dict(num_classes=11),
    auxiliary_head=dict(num_classes=11),
)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3), paramwise_cfg=dict(custom_keys=dict(adapters=dict(lr_mult=3.0)))
)
train_cfg = dict(max_iters=552, val_interval=276)  # 46 iterations are an epoch
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=46),
    dict(type="PolyLR", eta_min=0.0, power=0.9, by_epoch=False, begin=46, end=552),
]
default_hooks = dict(logger=dict(interval=23), checkpoint=dict(interval=276))
randomness = dict(seed=0)
