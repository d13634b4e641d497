# SNELLA on Swin-B with UperNet, ADE20K (150 classes): under its name in the zoo.
_base_ = "../snella_upernet_swin_ade20k.py"
