# UperNet on timm's DINOv2 ViT-B/14, adapted. Sizes, DINOv3 and linear heads inherit this.
_base_ = __import__("snella_seg").stock("_base_/models/upernet_vit-b16_ln_mln.py") + [
    "../snella_backbone.py"
]
model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        **_base_.snella_backbone,
        backbone=dict(
            type="TIMMBackbone",
            model_name="vit_base_patch14_dinov2",
            pretrained=False,
            out_indices=(2, 5, 8, 11),
        ),
        base_checkpoint="pretrain/vit_base_patch14_dinov2.pth",
    ),
)
