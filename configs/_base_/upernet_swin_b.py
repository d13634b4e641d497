# Stock UperNet on Swin-B, window 7, pretrained on ImageNet-22k.
_base_ = __import__("snella_seg").stock("_base_/models/upernet_swin.py")

checkpoint = (
    "https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/swin/"
    "swin_base_patch4_window7_224_22k_20220317-4f79f7c0.pth"
)
model = dict(
    backbone=dict(
        init_cfg=dict(type="Pretrained", checkpoint=checkpoint),
        embed_dims=128,
        depths=[2, 2, 18, 2],
        num_heads=[4, 8, 16, 32],
        drop_path_rate=0.3,
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
