# What SNELLA is compared with: the same model, schedule and seed, only the heads are trained.
_base_ = "./snella_upernet_camvid.py"

model = dict(backbone=dict(method="frozen"))
