# A ViT with patches of 16 under a linear head on its last map.
custom_imports = dict(imports=["snella_seg.register", "snella_seg.lab.candidates"])
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[127.5, 127.5, 127.5],
        std=[127.5, 127.5, 127.5],
        bgr_to_rgb=True,
        seg_pad_val=255,
    ),
    backbone=dict(
        type="SnellaBackbone",
        backbone=dict(type="VisionTransformer", patch_size=16, patch_bias=True),
    ),
    decode_head=dict(type="LinearHead", align_corners=False),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
