# SNELLA on ViT-B/16 with UperNet, Pascal-Context (59 classes): under its name in the zoo.
_base_ = "../snella_upernet_pascal_context.py"
