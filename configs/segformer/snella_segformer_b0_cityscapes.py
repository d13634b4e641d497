# SNELLA on SegFormer-B0, Cityscapes, 1024x1024, 160k iterations.
_base_ = [
    "../_base_/datasets/cityscapes_1024.py",
    "../_base_/models/segformer_b0.py",
    "../_base_/schedule_snella_160k.py",
]
model = dict(
    data_preprocessor=dict(size=(1024, 1024)),
    decode_head=dict(num_classes=19),
    test_cfg=dict(mode="slide", crop_size=(1024, 1024), stride=(768, 768)),
)
