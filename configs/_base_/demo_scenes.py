# The embedded demo's generated scenes, 128x128, 10 classes (see snella_seg/lab/demo/scenes.py).
data_root = "data/snella_demo/scenes/target"
metainfo = dict(
    classes=(
        "sky", "hill", "ground", "road", "water",
        "building", "tree", "vehicle", "person", "lamp",
    ),
    palette=[
        [110, 170, 230], [150, 120, 160], [150, 190, 90], [120, 120, 120], [30, 90, 200],
        [200, 100, 60], [20, 120, 40], [230, 40, 60], [255, 150, 210], [255, 220, 40],
    ],
)  # fmt: skip
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
dataset = dict(
    type="BaseSegDataset",
    data_root=data_root,
    metainfo=metainfo,
    img_suffix=".png",
    reduce_zero_label=True,  # label 0 is 'other', as in ADE20K
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
