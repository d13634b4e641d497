# SNELLA on DINOv3 ViT-B/16 with a linear head on the maps of four blocks, ADE20K (150 classes).
_base_ = "./snella_linear_dinov3_b_ade20k.py"

model = dict(decode_head=dict(in_channels=[768] * 4, in_index=[0, 1, 2, 3]))
