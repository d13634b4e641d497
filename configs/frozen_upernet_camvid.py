# What SNELLA is compared with: the same model, schedule and seed, nothing adapted.
_base_ = "./snella_upernet_camvid.py"

model = dict(backbone=dict(targets=[]))
custom_hooks = []
