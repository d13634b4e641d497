# SNELLA on Swin-B with UperNet, Pascal-Context (59 classes): under its name in the zoo.
_base_ = "../snella_upernet_swin_pascal_context.py"
