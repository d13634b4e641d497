# UperNet on DeiT-B/16, adapted.
_base_ = "./upernet_vit_b.py"

model = dict(
    pretrained="pretrain/deit_base_patch16_224-b5f2ef4d.pth",
    backbone=dict(backbone=dict(drop_path_rate=0.1)),
)
