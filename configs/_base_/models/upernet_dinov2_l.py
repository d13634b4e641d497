# UperNet on timm's DINOv2 ViT-L/14, adapted.
_base_ = "./upernet_dinov2_b.py"

model = dict(
    backbone=dict(
        backbone=dict(model_name="vit_large_patch14_dinov2", out_indices=(5, 11, 17, 23)),
        base_checkpoint="pretrain/vit_large_patch14_dinov2.pth",
    ),
    neck=dict(in_channels=[1024] * 4, out_channels=1024),
    decode_head=dict(in_channels=[1024] * 4),
    auxiliary_head=dict(in_channels=1024),
)
