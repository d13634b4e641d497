# Proving ground (a): CamVid as it is. A frozen backbone reaches what its features hold.
_base_ = __import__("snella_seg").stock("_base_/default_runtime.py") + [
    "../_base_/camvid_quarter.py",
    "../_base_/linear_vit_tiny.py",
    "../_base_/schedule_ground.py",
]
