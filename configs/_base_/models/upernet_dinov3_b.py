# UperNet on timm's DINOv3 ViT-B/16, adapted.
_base_ = "./upernet_dinov2_b.py"

model = dict(
    backbone=dict(
        backbone=dict(model_name="vit_base_patch16_dinov3"),
        base_checkpoint="pretrain/vit_base_patch16_dinov3.pth",
    ),
)
