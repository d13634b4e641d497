# SNELLA on BEiT-B/16 with UperNet, Pascal-Context (59 classes), 480x480, 160k iterations.
_base_ = [
    "../_base_/datasets/pascal_context.py",
    "../_base_/models/upernet_beit_b.py",
    "../_base_/schedules/snella_160k_beit_b.py",
    "../_base_/windows_480.py",
]
model = dict(
    **_base_.windows_480,
    decode_head=dict(num_classes=59),
    auxiliary_head=dict(num_classes=59),
)
