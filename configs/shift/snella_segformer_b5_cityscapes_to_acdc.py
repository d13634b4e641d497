# A model of Cityscapes, merged, is adapted to ACDC: fog, night, rain and snow. See README.md.
_base_ = [
    "../_base_/datasets/acdc.py",
    "../_base_/models/segformer_b5.py",
    "../_base_/schedule_snella_160k.py",
]
source = "pretrain/segformer_b5_cityscapes.pth"
model = dict(
    data_preprocessor=dict(size=(1024, 1024)),
    pretrained=None,
    backbone=dict(base_checkpoint=source),
    test_cfg=dict(mode="slide", crop_size=(1024, 1024), stride=(768, 768)),
)
load_from = source  # its head as well
