# UperNet on BEiT-B/16, adapted. It takes images of its img_size: larger ones are tested by windows.
_base_ = __import__("snella_seg").stock("_base_/models/upernet_beit.py") + ["../snella_backbone.py"]

model = dict(
    pretrained="pretrain/beit_base_patch16_224_pt22k_ft22k.pth",
    backbone=dict(_delete_=True, **_base_.snella_backbone, backbone=_base_.model.backbone),
    test_cfg=dict(mode="slide", crop_size=(640, 640), stride=(426, 426)),
)
