"""Stock configs with a transformer as their backbone, made small enough for a test."""

from pathlib import Path

from mmengine.config import Config

import snella_seg
from snella_seg.configs import replace_type, type_name

ROOT = Path(snella_seg.stock("_base_/default_runtime.py")[0]).parents[1]
TRANSFORMERS = {
    "BEiT", "MAE", "MixVisionTransformer", "PCPVT", "SVT", "SwinTransformer", "VPD",
    "VisionTransformer", "ConvNeXt",
}  # fmt: skip
SIDE = 128
#: Beginning of a name -> why those configs cannot be wrapped, or not be built here.
UNFIT = {
    "vpd/": "VPD is built on Stable Diffusion: mmsegmentation's requirements/optional.txt",
    "san/": "SAN has an image_encoder and a side adapter, and no model.backbone",
    "swin/swin-tiny-patch4-window7_upernet_1xb8-20k_levir": (
        "it cannot be built unwrapped either: its means are six, mmengine takes one or three"
    ),
}


def stock_configs() -> list[str]:
    """Names of all of them, by the type of their backbone or image encoder."""
    names = []
    for path in sorted(ROOT.glob("[!_]*/*.py")):
        model = Config.fromfile(path, import_custom_modules=False).get("model") or {}
        backbone = model.get("backbone") or model.get("image_encoder") or {}
        if type_name(backbone) in TRANSFORMERS:
            names.append(path.relative_to(ROOT).as_posix())
    return names


def shrink(cfg: Config) -> None:
    """Two blocks a stage, or as many as maps are asked for; small images; no weights to load."""
    model = cfg.model
    inner = model.backbone.backbone
    model.pretrained = None
    for key in {"init_cfg", "pretrained"} & inner.keys():
        inner[key] = None
    if "num_layers" in inner and isinstance(inner.num_layers, int):
        taps = inner.get("out_indices", -1)
        count = 1 if isinstance(taps, int) else len(taps)
        inner.num_layers = max(count, 2)
        inner.out_indices = list(range(count)) if count > 1 else inner.num_layers - 1
    for key in ("depths", "num_layers"):
        if isinstance(inner.get(key), (list, tuple)):
            inner[key] = [min(depth, 2) for depth in inner[key]]
    if "img_size" in inner:
        inner.img_size = (SIDE, SIDE)
    model.data_preprocessor.size = (SIDE, SIDE)
    replace_type(model, "SyncBN", "BN")
    for head in ("decode_head", "auxiliary_head"):
        for one in model[head] if isinstance(model.get(head), list) else [model.get(head)]:
            if one and "img_size" in one:
                one.img_size = (SIDE, SIDE)
