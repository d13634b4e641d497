# UperNet on Swin-L, window 7, pretrained on ImageNet-22k, adapted.
_base_ = "./upernet_swin_b.py"

checkpoint = (
    "https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/swin/"
    "swin_large_patch4_window7_224_22k_20220412-aeecf2aa.pth"
)
model = dict(
    backbone=dict(
        backbone=dict(
            init_cfg=dict(checkpoint=checkpoint), embed_dims=192, num_heads=[6, 12, 24, 48]
        )
    ),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
