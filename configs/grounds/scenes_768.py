# Proving ground (d): generated scenes, from day to night, with a ViT of width 768.
_base_ = __import__("snella_seg").stock("_base_/default_runtime.py") + [
    "../_base_/demo_scenes.py",
    "../_base_/linear_vit_scenes.py",
    "../_base_/schedule_ground.py",
]
source = dict(checkpoint="data/snella_demo/source_768.pth")
model = dict(
    backbone=dict(
        backbone=dict(embed_dims=768, num_heads=12),
        init_cfg=dict(checkpoint="data/snella_demo/source_768.pth"),
    ),
    decode_head=dict(in_channels=768),
)
