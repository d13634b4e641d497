# SegFormer-B5, its encoder adapted.
_base_ = "./segformer_b1.py"

checkpoint = (
    "https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/segformer/"
    "mit_b5_20220624-658746d9.pth"
)
model = dict(
    pretrained=checkpoint,
    backbone=dict(backbone=dict(num_layers=[3, 6, 40, 3])),
)
