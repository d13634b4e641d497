# Proving ground (b): CamVid, shifted to night. Every image is developed right after it is read.
_base_ = "./camvid_day.py"

train_pipeline = {{_base_.train_pipeline}}
train_pipeline.insert(1, dict(type="Night"))
test_pipeline = {{_base_.test_pipeline}}
test_pipeline.insert(1, dict(type="Night"))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
