# SNELLA on DINOv2 ViT-B/14 with UperNet, ADE20K (150 classes), 512x512, 160k iterations.
_base_ = [
    "../_base_/datasets/ade20k.py",
    "../_base_/models/upernet_dinov2_b.py",
    "../_base_/schedule_snella_160k.py",
]
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
