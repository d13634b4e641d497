# SNELLA on ViT-B/16 with UperNet, ADE20K (150 classes): under its name in the zoo.
_base_ = "../snella_upernet_ade20k.py"
