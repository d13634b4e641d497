# The proving ground by day with all twelve blocks.
_base_ = "./camvid_day.py"

model = dict(backbone=dict(backbone=dict(num_layers=12, out_indices=(11,))))
