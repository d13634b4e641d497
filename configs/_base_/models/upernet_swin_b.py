# UperNet on Swin-B, window 7, adapted. Other sizes inherit this.
_base_ = ["../upernet_swin_b.py", "../snella_backbone.py"]

model = dict(backbone=dict(_delete_=True, **_base_.snella_backbone, backbone=_base_.model.backbone))
