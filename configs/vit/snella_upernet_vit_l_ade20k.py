# SNELLA on ViT-L/16 with UperNet, ADE20K (150 classes), 512x512, 160k iterations.
_base_ = [
    "../_base_/datasets/ade20k.py",
    "../_base_/models/upernet_vit_l.py",
    "../_base_/schedule_snella_160k.py",
]
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
