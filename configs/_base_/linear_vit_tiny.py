# The first six blocks of a pretrained ViT-Tiny/16, adapted by SNELLA, and a linear head on the last
# map: what is reached is what the backbone knows.
checkpoint = "{{$SNELLA_SHARED:../shared}}/weights/vit_tiny_patch16_224_augreg_in21k_ft_in1k.pth"
custom_imports = dict(imports=["snella_seg.register", "snella_seg.lab.candidates"])
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[127.5, 127.5, 127.5],
        std=[127.5, 127.5, 127.5],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(128, 160),
    ),
    backbone=dict(
        type="SnellaBackbone",
        backbone=dict(
            type="VisionTransformer",
            img_size=(128, 160),
            patch_size=16,
            patch_bias=True,
            embed_dims=192,
            num_layers=6,
            num_heads=3,
            out_indices=(5,),
            interpolate_mode="bicubic",
            norm_cfg=dict(type="LN", eps=1e-6, requires_grad=True),
            init_cfg=dict(type="Pretrained", checkpoint=checkpoint),
        ),
    ),
    decode_head=dict(type="LinearHead", in_channels=192, num_classes=11, align_corners=False),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
