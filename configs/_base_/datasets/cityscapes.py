# Cityscapes, 19 classes, crops of 512x1024.
_base_ = __import__("snella_seg").stock(
    "_base_/datasets/cityscapes.py", "_base_/default_runtime.py"
)
train_dataloader = dict(batch_size=2)  # on 8 GPUs, as stock
