# SNELLA on Swin-B with UperNet, ADE20K, 512x512, 160k iterations.
_base_ = __import__("snella_seg").stock(
    "_base_/datasets/ade20k.py", "_base_/default_runtime.py"
) + ["./_base_/upernet_swin_b.py", "./_base_/schedule_snella_160k.py"]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(
        _delete_=True,
        type="SnellaBackbone",
        method="snella_v2",
        backbone={{_base_.model.backbone}},
    ),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
train_dataloader = dict(batch_size=2)  # on 8 GPUs, as stock
