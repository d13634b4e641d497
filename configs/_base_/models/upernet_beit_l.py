# UperNet on BEiT-L/16, adapted.
_base_ = "./upernet_beit_b.py"

model = dict(
    pretrained="pretrain/beit_large_patch16_224_pt22k_ft22k.pth",
    backbone=dict(
        backbone=dict(
            embed_dims=1024,
            num_layers=24,
            num_heads=16,
            init_values=1e-6,
            drop_path_rate=0.2,
            out_indices=(7, 11, 15, 23),
        )
    ),
    neck=dict(embed_dim=1024),
    decode_head=dict(in_channels=[1024] * 4, channels=1024),
    auxiliary_head=dict(in_channels=1024),
)
