# ADE20K, 150 classes, crops of 512x512.
_base_ = __import__("snella_seg").stock("_base_/datasets/ade20k.py", "_base_/default_runtime.py")
train_dataloader = dict(batch_size=2)  # on 8 GPUs, as stock
