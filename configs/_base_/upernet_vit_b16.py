# Stock UperNet on ViT-B/16 with MultiLevelNeck. The weights may have timm's or mmseg's names.
_base_ = __import__("snella_seg").stock("_base_/models/upernet_vit-b16_ln_mln.py")

model = dict(
    pretrained="pretrain/vit_base_patch16_224.pth",
    backbone=dict(patch_bias=True),  # pretrained ViTs have one
)
