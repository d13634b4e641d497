# A small UperNet on ViT-Tiny/16, for images of CamVid's size and machines without a GPU.
_base_ = __import__("snella_seg").stock("_base_/models/upernet_vit-b16_ln_mln.py")

checkpoint = "{{$SNELLA_SHARED:../shared}}/weights/vit_tiny_patch16_224_augreg_in21k_ft_in1k.pth"
norm_cfg = dict(type="BN", requires_grad=True)
model = dict(
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], size=(224, 320)),
    pretrained=checkpoint,
    backbone=dict(img_size=(224, 320), embed_dims=192, num_heads=3, patch_bias=True),
    neck=dict(in_channels=[192, 192, 192, 192], out_channels=192),
    decode_head=dict(in_channels=[192, 192, 192, 192], channels=64, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=192, channels=64, norm_cfg=norm_cfg),
)
