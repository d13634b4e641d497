# A UperNet on a two-layer ViT, 64x64 images, 8 iterations. DATA_ROOT is filled in by conftest.py.
_base_ = __import__("snella_seg").stock("_base_/default_runtime.py")

custom_imports = dict(imports=["snella_seg.register"])
custom_hooks = [dict(type="SparsityAllocationHook", target_sparsity=0.5, interval=2)]
randomness = dict(seed=0)

norm_cfg = dict(type="BN", requires_grad=True)
head = dict(channels=16, num_classes=4, norm_cfg=norm_cfg, align_corners=False)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[127.5, 127.5, 127.5],
        std=[127.5, 127.5, 127.5],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(64, 64),
    ),
    backbone=dict(
        type="SnellaBackbone",
        adapter=dict(rank=4),
        backbone=dict(
            type="VisionTransformer",
            img_size=64,
            patch_size=8,
            embed_dims=32,
            num_layers=2,
            num_heads=2,
            out_indices=(0, 1),
            patch_bias=True,
        ),
    ),
    neck=dict(type="MultiLevelNeck", in_channels=[32, 32], out_channels=32, scales=[2, 1]),
    decode_head=dict(
        type="UPerHead", in_channels=[32, 32], in_index=[0, 1], pool_scales=(1, 2), **head
    ),
    auxiliary_head=dict(type="FCNHead", in_channels=32, in_index=1, num_convs=1, **head),
    test_cfg=dict(mode="whole"),
)

annotations = dict(type="LoadAnnotations", reduce_zero_label=True)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    annotations,
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [dict(type="LoadImageFromFile"), annotations, dict(type="PackSegInputs")]
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="RandomFlip", prob=p, direction="horizontal") for p in (0.0, 1.0)],
            [annotations],
            [dict(type="PackSegInputs")],
        ],
    ),
]
dataset = dict(
    type="ADE20KDataset",
    data_root="DATA_ROOT",
    metainfo=dict(classes=("wall", "building", "sky", "floor")),
)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=train_pipeline,
        **dataset,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=test_pipeline,
        **dataset,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator

optim_wrapper = dict(
    type="OptimWrapper",
    constructor="SnellaOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=1e-2, weight_decay=0.01),
)
train_cfg = dict(type="IterBasedTrainLoop", max_iters=8, val_interval=4)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=2, log_metric_by_epoch=False),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=4),
    visualization=dict(type="SegVisualizationHook"),
)
