# UperNet on ViT-S/16, adapted.
_base_ = "./upernet_vit_b.py"

model = dict(
    pretrained="pretrain/vit_small_patch16_224.pth",
    backbone=dict(backbone=dict(embed_dims=384, num_heads=6)),
    neck=dict(in_channels=[384] * 4, out_channels=384),
    decode_head=dict(in_channels=[384] * 4),
    auxiliary_head=dict(in_channels=384),
)
