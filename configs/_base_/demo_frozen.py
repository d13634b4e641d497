# The embedded demo's reference: the same as SNELLA, but nothing is adapted.
_base_ = "../snella_upernet_demo.py"

prepare = None
model = dict(backbone=dict(targets=[]))
custom_hooks = []
