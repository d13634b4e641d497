# ACDC, Cityscapes' 19 classes in fog, at night, in rain and in snow.
_base_ = "./cityscapes_1024.py"

conditions = [
    [
        dict(
            type="DarkZurichDataset",  # has ACDC's suffixes
            data_root="data/acdc/",
            data_prefix=dict(
                img_path=f"rgb_anon/{weather}/{split}", seg_map_path=f"gt/{weather}/{split}"
            ),
            pipeline=pipeline,
        )
        for weather in ("fog", "night", "rain", "snow")
    ]
    for split, pipeline in (("train", _base_.train_pipeline), ("val", _base_.test_pipeline))
]
train_dataloader = dict(dataset=dict(_delete_=True, type="ConcatDataset", datasets=conditions[0]))
val_dataloader = dict(dataset=dict(_delete_=True, type="ConcatDataset", datasets=conditions[1]))
test_dataloader = val_dataloader
