# UperNet on timm's DINOv2 ViT-S/14, adapted.
_base_ = "./upernet_dinov2_b.py"

model = dict(
    backbone=dict(
        backbone=dict(model_name="vit_small_patch14_dinov2"),
        base_checkpoint="pretrain/vit_small_patch14_dinov2.pth",
    ),
    neck=dict(in_channels=[384] * 4, out_channels=384),
    decode_head=dict(in_channels=[384] * 4),
    auxiliary_head=dict(in_channels=384),
)
