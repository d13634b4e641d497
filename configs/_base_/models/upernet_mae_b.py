# UperNet on MAE-B/16, adapted. It takes images of its img_size: larger ones are tested by windows.
_base_ = __import__("snella_seg").stock("_base_/models/upernet_mae.py") + ["../snella_backbone.py"]

inner = dict(_base_.model.backbone, img_size=(512, 512), init_values=1.0)
model = dict(
    pretrained="pretrain/mae_pretrain_vit_base.pth",
    backbone=dict(_delete_=True, **_base_.snella_backbone, backbone=inner),
    decode_head=dict(in_channels=[768] * 4, channels=768),
    auxiliary_head=dict(in_channels=768),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(341, 341)),
)
