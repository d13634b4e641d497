# SNELLA on SegFormer-B4, ADE20K (150 classes), 512x512, 160k iterations.
_base_ = [
    "../_base_/datasets/ade20k.py",
    "../_base_/models/segformer_b4.py",
    "../_base_/schedule_snella_160k.py",
]
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    decode_head=dict(num_classes=150),
)
