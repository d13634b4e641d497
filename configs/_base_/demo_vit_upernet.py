# A ViT of width 96 and depth 4 with patches of 8 and a small UperNet, for 128x128 images.
norm_cfg = dict(type="BN", requires_grad=True)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[127.5, 127.5, 127.5],
        std=[127.5, 127.5, 127.5],
        bgr_to_rgb=True,
        seg_pad_val=255,
        size=(128, 128),
    ),
    backbone=dict(
        type="VisionTransformer",
        img_size=(128, 128),
        patch_size=8,
        patch_bias=True,
        embed_dims=96,
        num_layers=4,
        num_heads=3,
        out_indices=(1, 2, 3),
    ),
    neck=dict(type="MultiLevelNeck", in_channels=[96, 96, 96], out_channels=48, scales=[2, 1, 0.5]),
    decode_head=dict(
        type="UPerHead",
        in_channels=[48, 48, 48],
        in_index=[0, 1, 2],
        pool_scales=(1, 2, 4),
        channels=48,
        dropout_ratio=0.1,
        num_classes=10,
        norm_cfg=norm_cfg,
        align_corners=False,
        # rare classes count more: inverse square root of their share of the pixels
        loss_decode=dict(
            type="CrossEntropyLoss",
            use_sigmoid=False,
            class_weight=[0.56, 1.4, 0.95, 0.51, 2.15, 1.0, 1.91, 1.13, 1.83, 2.27],
        ),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
