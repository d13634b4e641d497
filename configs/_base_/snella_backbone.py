# What adapts the backbone in every model of `models/`.
snella_backbone = dict(type="SnellaBackbone", method="snella_v2")
