# SegFormer-B3, its encoder adapted.
_base_ = "./segformer_b1.py"

checkpoint = (
    "https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/segformer/"
    "mit_b3_20220624-13b1141c.pth"
)
model = dict(
    pretrained=checkpoint,
    backbone=dict(backbone=dict(num_layers=[3, 4, 18, 3])),
)
