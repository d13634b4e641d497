# SNELLA on DINOv3 ViT-B/16 with a linear head, ADE20K (150 classes), 512x512, 160k iterations.
_base_ = [
    "../_base_/datasets/ade20k.py",
    "../_base_/models/linear_dinov3_b.py",
    "../_base_/schedule_snella_160k.py",
]
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    decode_head=dict(num_classes=150),
)
