# SNELLA on BEiT-L/16 with UperNet, ADE20K (150 classes), 640x640, 160k iterations.
_base_ = [
    "../_base_/datasets/ade20k_640.py",
    "../_base_/models/upernet_beit_l.py",
    "../_base_/schedules/snella_160k_beit_l.py",
]
model = dict(
    data_preprocessor=dict(size=(640, 640)),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
