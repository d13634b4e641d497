# A linear head on the last map of DINOv3 ViT-L/16, adapted.
_base_ = "./upernet_dinov3_l.py"

model = dict(
    neck=None,
    decode_head=dict(
        _delete_=True, type="LinearHead", in_channels=1024, num_classes=19, align_corners=False
    ),
    auxiliary_head=None,
)
