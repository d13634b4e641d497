# The embedded demo: a small ViT, taught street scenes by day, is adapted to the night.
# Data, source model and frozen reference are made on first use, in data/snella_demo.
_base_ = __import__("snella_seg").stock("_base_/default_runtime.py") + [
    "./_base_/demo_scenes.py",
    "./_base_/demo_vit_upernet.py",
    "./_base_/demo_schedule.py",
]
prepare = "snella_seg.lab.demo.prepare:prepare"
model = dict(
    backbone=dict(
        _delete_=True,
        type="SnellaBackbone",
        backbone={{_base_.model.backbone}},
        method="snella_v2",
        adapter=dict(rank=16),
        init_cfg=dict(type="Pretrained", checkpoint="data/snella_demo/source.pth"),
    )
)
custom_hooks = [
    dict(type="SparsityAllocationHook", target_sparsity=0.6),
    dict(type="DemoReportHook"),
]
