# SNELLA on DINOv2 ViT-S/14 with a linear head, Pascal-Context (60 classes), 480x480, 160k iterations.
_base_ = [
    "../_base_/datasets/pascal_context_60.py",
    "../_base_/models/linear_dinov2_s.py",
    "../_base_/schedule_snella_160k.py",
]
model = dict(
    data_preprocessor=dict(size=(480, 480)),
    decode_head=dict(num_classes=60),
)
