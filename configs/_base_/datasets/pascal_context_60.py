# Pascal-Context, 59 classes and background, crops of 480x480.
_base_ = __import__("snella_seg").stock(
    "_base_/datasets/pascal_context.py", "_base_/default_runtime.py"
)
train_dataloader = dict(batch_size=2)  # on 8 GPUs, as stock
