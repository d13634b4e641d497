# The first six blocks of a pretrained ViT-Tiny/16, adapted by SNELLA, and a linear head on the last
# map: what is reached is what the backbone knows.
_base_ = "./linear_vit.py"

checkpoint = "{{$SNELLA_SHARED:../shared}}/weights/vit_tiny_patch16_224_augreg_in21k_ft_in1k.pth"
model = dict(
    data_preprocessor=dict(size=(128, 160)),
    backbone=dict(
        backbone=dict(
            img_size=(128, 160),
            embed_dims=192,
            num_layers=6,
            num_heads=3,
            out_indices=(5,),
            interpolate_mode="bicubic",
            norm_cfg=dict(type="LN", eps=1e-6, requires_grad=True),
            init_cfg=dict(type="Pretrained", checkpoint=checkpoint),
        ),
    ),
    decode_head=dict(in_channels=192, num_classes=11),
)
