# ADE20K, 150 classes, crops of 640x640.
_base_ = __import__("snella_seg").stock(
    "_base_/datasets/ade20k_640x640.py", "_base_/default_runtime.py"
)
train_dataloader = dict(batch_size=2)  # on 8 GPUs, as stock
