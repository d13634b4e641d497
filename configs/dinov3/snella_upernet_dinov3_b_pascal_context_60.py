# SNELLA on DINOv3 ViT-B/16 with UperNet, Pascal-Context (60 classes), 480x480, 160k iterations.
_base_ = [
    "../_base_/datasets/pascal_context_60.py",
    "../_base_/models/upernet_dinov3_b.py",
    "../_base_/schedule_snella_160k.py",
]
model = dict(
    data_preprocessor=dict(size=(480, 480)),
    decode_head=dict(num_classes=60),
    auxiliary_head=dict(num_classes=60),
)
