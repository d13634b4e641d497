# The proving ground by day with all twelve blocks and the maps of four of them.
_base_ = "./camvid_day.py"

model = dict(
    backbone=dict(backbone=dict(num_layers=12, out_indices=(2, 5, 8, 11))),
    decode_head=dict(in_channels=[192, 192, 192, 192], in_index=[0, 1, 2, 3]),
)
