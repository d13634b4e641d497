"""Every config of the zoo fits its data and itself, and one of each kind takes a training step."""

import re
import sys

import pytest
import torch
from helpers import ROOT
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS

import snella_seg
import snella_seg.register  # noqa: F401
from snella_seg.inject import detach_adapters, list_adapters

sys.path.insert(0, str(ROOT / "benchmarks"))
from stand_ins import write_datasets, write_weights  # noqa: E402
from zoo import CONFIGS, batch, build, load, on_meta  # noqa: E402

ADAPTED = [
    path.relative_to(CONFIGS).as_posix() for path in sorted(CONFIGS.glob("[!_]*/snella_*.py"))
]
#: One of each backbone and head, the smallest that there is.
KINDS = [
    "beit/snella_upernet_beit_b_ade20k.py",
    "deit/snella_upernet_deit_b_ade20k.py",
    "dinov2/snella_linear4_dinov2_b_ade20k.py",
    "dinov2/snella_linear_dinov2_s_ade20k.py",
    "dinov2/snella_upernet_dinov2_s_ade20k.py",
    "dinov3/snella_linear_dinov3_s_pascal_context_60.py",
    "dinov3/snella_upernet_dinov3_b_cityscapes.py",
    "mae/snella_upernet_mae_b_pascal_context.py",
    "segformer/snella_segformer_b0_ade20k.py",
    "segformer/snella_segformer_b1_cityscapes.py",
    "swin/snella_upernet_swin_t_ade20k.py",
    "vit/snella_upernet_vit_s_pascal_context.py",
]
#: Of a config's model, the one in mmseg's own that it adapts.
STOCK = {
    "beit/snella_upernet_beit_b_ade20k.py": "beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py",
    "beit/snella_upernet_beit_l_ade20k.py": (
        "beit/beit-large_upernet_8xb1-amp-160k_ade20k-640x640.py"
    ),
    "deit/snella_upernet_deit_b_ade20k.py": (
        "vit/vit_deit-b16_mln_upernet_8xb2-160k_ade20k-512x512.py"
    ),
    "mae/snella_upernet_mae_b_ade20k.py": "mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py",
    **{
        f"swin/snella_upernet_swin_{name[0]}_ade20k.py": (
            f"swin/swin-{name}-patch4-window7-{data}-pre_upernet_8xb2-160k_ade20k-512x512.py"
        )
        for name, data in (
            ("tiny", "in1k"),
            ("small", "in1k"),
            ("base", "in22k"),
            ("large", "in22k"),
        )
    },
    **{
        f"segformer/snella_segformer_b{i}_{data}.py": (
            f"segformer/segformer_mit-b{i}_8xb{images}-160k_{data}-{size}x{size}.py"
        )
        for i in range(6)
        for data, size, images in (("ade20k", 512, 2), ("cityscapes", 1024, 1))
    },
}


@pytest.mark.parametrize("name", ADAPTED)
def test_the_config_fits_its_data_and_itself(name):
    """At full size, without memory: classes, crops, channels, and that something is adapted."""
    cfg = load(name)
    dataset = cfg.train_dataloader.dataset
    dataset = dataset.datasets[0] if "datasets" in dataset else dataset
    classes = len(DATASETS.get(f"mmseg.{dataset.type}").METAINFO["classes"])
    crops = [t.crop_size for t in dataset.pipeline if t.type == "RandomCrop"]
    assert [tuple(crop) for crop in crops] == [tuple(cfg.model.data_preprocessor["size"])]
    zero = next(t for t in dataset.pipeline if t.type == "LoadAnnotations")
    assert zero.get("reduce_zero_label", False) == (classes in (150, 59))
    with on_meta():
        model = build(cfg).eval()
        heads = [h for h in (model.decode_head, getattr(model, "auxiliary_head", None)) if h]
        assert {head.num_classes for head in heads} == {classes}
        assert list_adapters(model) and model.backbone.named_source
        height, width = crops[0]
        model.backbone.restore_modules()  # deltas want a device that computes
        detach_adapters(model.backbone)
        with torch.no_grad():
            maps = model.extract_feat(torch.empty(1, 3, height, width))
            assert {head(maps).shape[1] for head in heads} == {classes}


@pytest.mark.parametrize("name", ADAPTED)
def test_a_leaf_is_short_and_leaves_the_recipe_to_its_bases(name):
    text = (CONFIGS / name).read_text()
    assert len(text.splitlines()) < 25
    assert not re.search(r"method|optim_wrapper|param_scheduler|custom_hooks|lr", text)
    title = text.splitlines()[0]
    assert title.startswith("# ")


@pytest.mark.parametrize("name", STOCK)
def test_the_model_is_the_stock_one_adapted(name):
    stock = Config.fromfile(snella_seg.stock(STOCK[name])[0], import_custom_modules=False)
    mine = load(name)
    theirs, ours = stock.model.backbone.to_dict(), mine.model.backbone.backbone.to_dict()
    for either in (theirs, ours):
        either.pop("init_cfg", None)
        either.pop("patch_bias", None)
    assert {k: _plain(v) for k, v in ours.items()} == {k: _plain(v) for k, v in theirs.items()}
    assert _plain(stock.model.test_cfg.to_dict()) == _plain(mine.model.test_cfg.to_dict())
    for part in ("decode_head", "auxiliary_head"):
        for key in ("channels", "in_channels", "in_index", "num_classes"):
            assert (stock.model.get(part) or {}).get(key) == (mine.model.get(part) or {}).get(key)
    rules = stock.optim_wrapper.get("paramwise_cfg") or {}
    decay = rules.get("layer_decay_rate")
    assert mine.optim_wrapper.paramwise_cfg.get("decay_rate") == decay


def _plain(value):
    """Lists for tuples, all the way down."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def shrink(cfg: Config, side: int) -> None:
    """Few blocks, narrow heads, images of one size."""
    model, inner = cfg.model, cfg.model.backbone.backbone
    if inner.type == "TIMMBackbone" or isinstance(inner.get("num_layers"), int):
        depth = "depth" if inner.type == "TIMMBackbone" else "num_layers"
        inner[depth], inner.out_indices = 4, (0, 1, 2, 3)
    for key in ("depths", "num_layers"):
        if isinstance(inner.get(key), list):
            inner[key] = [1] * len(inner[key])
    if "img_size" in inner:
        inner.img_size = (side, side)
    for name in ("decode_head", "auxiliary_head"):
        if "channels" in (model.get(name) or {}):
            model[name].channels = 16
    model.data_preprocessor.size = (side, side)


@pytest.mark.parametrize("name", KINDS)
def test_one_of_each_kind_takes_a_step(name):
    torch.manual_seed(0)
    cfg = load(name)
    side = 56 if "dinov2" in name else 64
    shrink(cfg, side)
    model = build(cfg)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses = model.train_step(batch((side, side), 2), wrapper)
    assert torch.isfinite(losses["loss"])
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert not {n for n, p in model.named_parameters() if not p.requires_grad} & changed
    assert any("adapters" in n for n in changed) and any(n.startswith("decode") for n in changed)


def test_the_source_of_a_shift_is_stock():
    cfg = load("shift/source_segformer_b5_gta.py")
    assert cfg.model.backbone.type == "MixVisionTransformer"
    assert cfg.train_dataloader.dataset.data_root == "data/gta/"
    assert cfg.val_dataloader.dataset.data_root == "data/cityscapes/"
    assert cfg.train_dataloader.dataset.data_prefix.img_path == "images"


@pytest.mark.parametrize("data", ["ade20k", "pascal_context", "pascal_context_60", "cityscapes"])
def test_stand_ins_are_read_as_the_data_sets_are(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = load(f"segformer/snella_segformer_b0_{data}.py")
    init_default_scope(cfg.default_scope)
    write_datasets(cfg, tmp_path)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        dataset = DATASETS.build(loader.dataset)
        assert len(dataset) == 2
        assert dataset[0]["inputs"].shape[0] == 3
    classes = set(dataset[0]["data_samples"].gt_sem_seg.data.unique().tolist())
    assert classes - {255} == set(range(len(dataset.METAINFO["classes"])))


def test_stand_ins_of_weights_are_loaded_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = load("vit/snella_upernet_vit_s_ade20k.py")
    model = build(cfg)
    assert write_weights(model.backbone, tmp_path) == tmp_path / model.backbone.named_source
    model.init_weights()
    assert model.backbone.base_is_loaded
