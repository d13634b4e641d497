# UperNet on timm's DINOv3 ViT-L/16, adapted.
_base_ = "./upernet_dinov2_l.py"

model = dict(
    backbone=dict(
        backbone=dict(model_name="vit_large_patch16_dinov3"),
        base_checkpoint="pretrain/vit_large_patch16_dinov3.pth",
    ),
)
