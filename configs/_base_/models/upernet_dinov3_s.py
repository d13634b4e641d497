# UperNet on timm's DINOv3 ViT-S/16, adapted.
_base_ = "./upernet_dinov2_s.py"

model = dict(
    backbone=dict(
        backbone=dict(model_name="vit_small_patch16_dinov3"),
        base_checkpoint="pretrain/vit_small_patch16_dinov3.pth",
    ),
)
