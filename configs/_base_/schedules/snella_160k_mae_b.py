# Our 160k schedule with MAE-B's layer decay.
_base_ = "../schedule_snella_160k.py"

optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.65))
