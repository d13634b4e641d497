# Proving ground (b): CamVid, shifted to night. Every image is developed right after it is read.
_base_ = "./camvid_day.py"

shift = dict(type="Night")
train_pipeline = [_base_.train_pipeline[0], shift, *_base_.train_pipeline[1:]]
test_pipeline = [_base_.test_pipeline[0], shift, *_base_.test_pipeline[1:]]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
