# UperNet on ViT-L/16, adapted.
_base_ = "./upernet_vit_b.py"

model = dict(
    pretrained="pretrain/vit_large_patch16_224.pth",
    backbone=dict(
        backbone=dict(embed_dims=1024, num_layers=24, num_heads=16, out_indices=(5, 11, 17, 23))
    ),
    neck=dict(in_channels=[1024] * 4, out_channels=1024),
    decode_head=dict(in_channels=[1024] * 4),
    auxiliary_head=dict(in_channels=1024),
)
