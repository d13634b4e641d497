# SNELLA on Swin-B with UperNet, Pascal-Context (59 classes), 480x480, 160k iterations.
_base_ = __import__("snella_seg").stock(
    "_base_/datasets/pascal_context_59.py", "_base_/default_runtime.py"
) + ["./_base_/upernet_swin_b.py", "./_base_/schedule_snella_160k.py"]

model = dict(
    data_preprocessor=dict(size=(480, 480)),
    backbone=dict(
        _delete_=True,
        type="SnellaBackbone",
        method="snella_v2",
        backbone={{_base_.model.backbone}},
    ),
    decode_head=dict(num_classes=59),
    auxiliary_head=dict(num_classes=59),
)
train_dataloader = dict(batch_size=2)  # on 8 GPUs, as stock
