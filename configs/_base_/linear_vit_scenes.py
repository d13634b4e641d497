# A ViT of two blocks and a linear head on its last map, for 128x128 images.
_base_ = "./linear_vit.py"

prepare = "snella_seg.lab.demo.prepare:prepare_source"
source = dict(  # what compare measures forgetting on
    options=dict(val_dataloader=dict(dataset=dict(data_root="data/snella_demo/scenes/source")))
)
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(
        backbone=dict(img_size=(128, 128), num_layers=2, out_indices=(1,)),
        init_cfg=dict(type="Pretrained"),
    ),
    decode_head=dict(num_classes=10),
)
