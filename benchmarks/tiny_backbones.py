"""Every supported family of backbones at toy size, for tests and for the matrix in the docs."""


def timm(model_name: str, **options) -> dict:
    """Config of an untrained timm model as a backbone."""
    return dict(type="TIMMBackbone", model_name=model_name, pretrained=False, **options)


_MMSEG_VIT = dict(
    img_size=(64, 64), patch_size=16, embed_dims=16, num_layers=2, num_heads=2, out_indices=(0, 1)
)
_VIT = dict(embed_dim=16, depth=2, num_heads=2, img_size=64, out_indices=(0, 1))
_PATCH_14 = {**_VIT, "img_size": 56}
_ROTARY = {**_VIT, "embed_dim": 32}
_SWIN = dict(embed_dim=8, depths=(1, 2, 1, 1), num_heads=(1, 1, 2, 2), window_size=4, img_size=64)
_CONVNEXT = dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))
_HIERA = dict(embed_dim=8, num_heads=1, stages=(1, 1, 2, 1))
_PYRAMID = dict(embed_dims=(8, 8, 16, 16), num_heads=(1, 1, 2, 2), depths=(1, 1, 1, 1))
_TWINS = {key: list(value) for key, value in _PYRAMID.items()}
_MAXVIT = dict(embed_dim=(32,) * 4, depths=(1, 1, 1, 1), stem_width=8, img_size=64)

#: Family -> config of a tiny backbone of it.
TINY: dict[str, dict] = {
    "mmseg VisionTransformer": dict(type="VisionTransformer", **_MMSEG_VIT),
    "mmseg SwinTransformer": dict(
        type="SwinTransformer",
        pretrain_img_size=64,
        embed_dims=8,
        depths=[1, 2, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
    ),
    "mmseg BEiT": dict(type="BEiT", init_values=0.1, **_MMSEG_VIT),
    "mmseg MAE": dict(type="MAE", init_values=0.1, **_MMSEG_VIT),
    "mmseg MixVisionTransformer": dict(
        type="MixVisionTransformer", embed_dims=8, num_layers=[1, 1, 1, 1], num_heads=[1, 1, 2, 2]
    ),
    "mmseg PCPVT": dict(type="PCPVT", sr_ratios=[8, 4, 2, 1], **_TWINS),
    "mmseg SVT": dict(
        type="SVT",
        sr_ratios=[8, 4, 2, 1],
        mlp_ratios=[4, 4, 4, 4],
        windiow_sizes=[7, 7, 7, 7],
        **{**_TWINS, "depths": [2, 2, 2, 2]},
    ),
    "timm ViT": timm("vit_base_patch16_224", **_VIT),
    "timm DeiT": timm("deit_base_distilled_patch16_224", **_VIT),
    "timm DeiT III": timm("deit3_base_patch16_224", **_VIT),
    "timm DINOv2": timm("vit_base_patch14_dinov2", **_PATCH_14),
    "timm DINOv2, registers": timm("vit_base_patch14_reg4_dinov2", **_PATCH_14),
    "timm DINOv2 g, SwiGLU": timm("vit_giant_patch14_dinov2", **{**_PATCH_14, "embed_dim": 24}),
    "timm DINOv3": timm("vit_base_patch16_dinov3", **_ROTARY),
    "timm DINOv3 S+, SwiGLU": timm("vit_small_plus_patch16_dinov3", **_ROTARY),
    "timm EVA-02": timm("eva02_base_patch14_224", **{**_ROTARY, "img_size": 56}),
    "timm EVA-02 tiny": timm("eva02_tiny_patch14_224", **{**_ROTARY, "img_size": 56}),
    "timm BEiT": timm("beit_base_patch16_224", **_VIT),
    "timm BEiT v2": timm("beitv2_base_patch16_224", **_VIT),
    "timm SigLIP": timm("vit_base_patch16_siglip_224", **_VIT),
    "timm SigLIP 2": timm("vit_base_patch16_siglip_gap_224", **_VIT),
    "timm CLIP": timm("vit_base_patch16_clip_224", **_VIT),
    "timm Swin": timm("swin_tiny_patch4_window7_224", **_SWIN),
    "timm Swin v2": timm("swinv2_tiny_window8_256", **_SWIN),
    "timm ConvNeXt": timm("convnext_tiny", **_CONVNEXT),
    "timm ConvNeXt, convolutional MLP": timm("convnext_atto", **_CONVNEXT),
    "timm ConvNeXt v2": timm("convnextv2_tiny", **_CONVNEXT),
    "timm Hiera": timm("hiera_tiny_224", img_size=(64, 64), **_HIERA),
    "timm SAM 2 Hiera": timm("sam2_hiera_tiny", **_HIERA),
    "timm PVT v2": timm("pvt_v2_b0", **_PYRAMID),
    "timm PVT v2, linear": timm("pvt_v2_b2_li", **_PYRAMID),
    "timm Twins-PCPVT": timm("twins_pcpvt_small", **_TWINS),
    "timm Twins-SVT": timm("twins_svt_small", **{**_TWINS, "depths": [2, 2, 2, 2]}),
    "timm TinyViT": timm(
        "tiny_vit_5m_224",
        embed_dims=(8, 8, 16, 16),
        num_heads=(1, 1, 2, 2),
        depths=(1, 1, 2, 1),
        window_sizes=(7, 7, 7, 7),
    ),
    "timm XCiT": timm(
        "xcit_small_12_p16_224", embed_dim=16, depth=2, num_heads=2, out_indices=(0, 1)
    ),
    "timm MaxViT": timm("maxvit_tiny_tf_224", **_MAXVIT),
    "timm CoAtNet": timm("coatnet_0_rw_224", **_MAXVIT),
    "timm SAM ViT": timm("samvit_base_patch16", window_size=3, global_attn_indexes=(1,), **_VIT),
    "timm Perception Encoder": timm("vit_pe_spatial_base_patch16_512", **_ROTARY),
    "timm AIMv2": timm("aimv2_large_patch14_224", **_PATCH_14),
    "timm ViT, rotary": timm("vit_base_patch16_rope_224", **_ROTARY),
    "timm BEiT-3": timm("beit3_base_patch16_224", **_VIT),
    "timm CaiT": timm("cait_xxs24_224", **_VIT),
    "timm Swin v2 CR": timm(
        "swinv2_cr_tiny_224", **{k: v for k, v in _SWIN.items() if k != "window_size"}
    ),
    "timm FastViT": timm("fastvit_t8", layers=(1, 1, 1, 1), embed_dims=(8, 8, 16, 32)),
    "timm EdgeNeXt": timm(
        "edgenext_xx_small", depths=(1, 2, 2, 2), dims=(8, 8, 16, 16), heads=(2, 2, 2, 2)
    ),
    "timm InceptionNeXt": timm("inception_next_tiny", **_CONVNEXT),
}

#: Sizes besides 64x64 that each is tried at, where its family does not take its own size only.
OTHER_SIZE = (60, 90)
