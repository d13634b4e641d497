# The source of a domain shift: stock SegFormer-B5, trained as a whole on GTA5 and validated on
# Cityscapes, which shows what the shift costs.
_base_ = __import__("snella_seg").stock(
    "segformer/segformer_mit-b5_8xb1-160k_cityscapes-1024x1024.py"
)
train_dataloader = dict(
    dataset=dict(
        data_root="data/gta/",
        data_prefix=dict(img_path="images", seg_map_path="labels"),
        img_suffix=".png",
        seg_map_suffix="_labelTrainIds.png",
    )
)
