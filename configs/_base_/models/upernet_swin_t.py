# UperNet on Swin-T, window 7, pretrained on ImageNet-1k, adapted.
_base_ = "./upernet_swin_b.py"

checkpoint = (
    "https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/swin/"
    "swin_tiny_patch4_window7_224_20220317-1cdeb081.pth"
)
model = dict(
    backbone=dict(
        backbone=dict(
            init_cfg=dict(checkpoint=checkpoint),
            embed_dims=96,
            depths=[2, 2, 6, 2],
            num_heads=[3, 6, 12, 24],
        )
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
