# SegFormer-B2, its encoder adapted.
_base_ = "./segformer_b1.py"

checkpoint = (
    "https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/segformer/"
    "mit_b2_20220624-66e8bf70.pth"
)
model = dict(
    pretrained=checkpoint,
    backbone=dict(backbone=dict(num_layers=[3, 4, 6, 3])),
)
