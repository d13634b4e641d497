# A ViT of two blocks with patches of 16 and a linear head on its last map, for 128x128 images.
custom_imports = dict(imports=["snella_seg.register", "snella_seg.lab.candidates"])
prepare = "snella_seg.lab.demo.prepare:prepare_source"
source = dict(  # what compare measures forgetting on
    options=dict(val_dataloader=dict(dataset=dict(data_root="data/snella_demo/scenes/source")))
)
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
        type="SnellaBackbone",
        backbone=dict(
            type="VisionTransformer",
            img_size=(128, 128),
            patch_size=16,
            patch_bias=True,
            num_layers=2,
            out_indices=(1,),
        ),
        init_cfg=dict(type="Pretrained"),
    ),
    decode_head=dict(type="LinearHead", num_classes=10, align_corners=False),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
