# UperNet on ViT-B/16, adapted. Other sizes of ViT and DeiT inherit this.
_base_ = ["../upernet_vit_b16.py", "../snella_backbone.py"]

model = dict(backbone=dict(_delete_=True, **_base_.snella_backbone, backbone=_base_.model.backbone))
