# A linear head on the last map of DINOv2 ViT-B/14, adapted.
_base_ = "./upernet_dinov2_b.py"

model = dict(
    neck=None,
    decode_head=dict(
        _delete_=True, type="LinearHead", in_channels=768, num_classes=19, align_corners=False
    ),
    auxiliary_head=None,
)
