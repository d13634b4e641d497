# A model of GTA5 is adapted to Cityscapes.
_base_ = [
    "../_base_/datasets/cityscapes_1024.py",
    "../_base_/models/segformer_b5.py",
    "../_base_/schedule_snella_160k.py",
]
source = "work_dirs/source_segformer_b5_gta/iter_160000.pth"
model = dict(
    data_preprocessor=dict(size=(1024, 1024)),
    pretrained=None,
    backbone=dict(base_checkpoint=source),
    test_cfg=dict(mode="slide", crop_size=(1024, 1024), stride=(768, 768)),
)
load_from = source  # its head as well
