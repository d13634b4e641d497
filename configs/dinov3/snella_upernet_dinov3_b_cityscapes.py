# SNELLA on DINOv3 ViT-B/16 with UperNet, Cityscapes, 512x1024, 160k iterations.
_base_ = [
    "../_base_/datasets/cityscapes.py",
    "../_base_/models/upernet_dinov3_b.py",
    "../_base_/schedule_snella_160k.py",
]
model = dict(
    data_preprocessor=dict(size=(512, 1024)),
    decode_head=dict(num_classes=19),
    auxiliary_head=dict(num_classes=19),
)
