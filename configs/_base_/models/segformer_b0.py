# SegFormer-B0, its encoder adapted. Other sizes inherit this.
_base_ = __import__("snella_seg").stock("_base_/models/segformer_mit-b0.py") + [
    "../snella_backbone.py"
]
checkpoint = (
    "https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/segformer/"
    "mit_b0_20220624-7e0fe6dd.pth"
)
model = dict(
    pretrained=checkpoint,
    backbone=dict(_delete_=True, **_base_.snella_backbone, backbone=_base_.model.backbone),
)
