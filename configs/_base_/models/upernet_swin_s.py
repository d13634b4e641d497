# UperNet on Swin-S, window 7, pretrained on ImageNet-1k, adapted.
_base_ = "./upernet_swin_t.py"

checkpoint = (
    "https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/swin/"
    "swin_small_patch4_window7_224_20220317-7ba6d6dd.pth"
)
model = dict(
    backbone=dict(backbone=dict(init_cfg=dict(checkpoint=checkpoint), depths=[2, 2, 18, 2]))
)
