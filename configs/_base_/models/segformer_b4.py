# SegFormer-B4, its encoder adapted.
_base_ = "./segformer_b1.py"

checkpoint = (
    "https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/segformer/"
    "mit_b4_20220624-d588d980.pth"
)
model = dict(
    pretrained=checkpoint,
    backbone=dict(backbone=dict(num_layers=[3, 8, 27, 3])),
)
