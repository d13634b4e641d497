"""Stock configs become SNELLA configs: they build, train, and keep what they had."""

import os

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from stock_configs import SIDE, UNFIT, shrink, stock_configs

import snella_seg
import snella_seg.register  # noqa: F401
from snella_seg.cli.reading import need_packages
from snella_seg.inject import list_adapters
from snella_seg.recipes import config_text, wrap_config

#: One of each backbone and of each kind of head; SNELLA_ALL_STOCK=1 takes them all.
SOME = [
    "beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py",
    "dpt/dpt_vit-b16_8xb2-160k_ade20k-512x512.py",
    "knet/knet-s3_swin-t_upernet_8xb2-adamw-80k_ade20k-512x512.py",
    "mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py",
    "segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py",
    "segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512.py",
    "swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py",
    "twins/twins_pcpvt-s_fpn_fpnhead_8xb4-80k_ade20k-512x512.py",
    "twins/twins_svt-s_uperhead_8xb2-160k_ade20k-512x512.py",
    "vit/vit_deit-s16_mln_upernet_8xb2-160k_ade20k-512x512.py",
]
#: What is said of those that cannot be built.
MESSAGES = "no model.backbone|6 values|VPD model, please install"
NAMES = stock_configs() if os.environ.get("SNELLA_ALL_STOCK") else SOME


def stock(name: str) -> Config:
    return Config.fromfile(snella_seg.stock(name)[0], import_custom_modules=False)


def train_step(cfg: Config):
    """Build a model and its optimizer, and take one step on noise."""
    init_default_scope("mmseg")
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo=dict(img_shape=(SIDE, SIDE), ori_shape=(SIDE, SIDE)))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 2, (1, SIDE, SIDE)))
        samples.append(sample)
    images = [torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8) for _ in range(2)]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.train_step(dict(inputs=images, data_samples=samples), wrapper)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    return model, wrapper, changed


@pytest.mark.parametrize("name", NAMES)
def test_stock_config_wraps_and_trains(name):
    try:
        need_packages(snella_seg.stock(name)[0])
    except ImportError as error:
        pytest.skip(str(error))
    for beginning, reason in UNFIT.items():
        if name.startswith(beginning):
            with pytest.raises((ValueError, AssertionError), match=MESSAGES):
                train_step(wrap_config(stock(name)))
            pytest.skip(reason)
    cfg = wrap_config(stock(name))
    shrink(cfg)
    cfg.optim_wrapper.type = "OptimWrapper"
    cfg.optim_wrapper.pop("loss_scale", None)
    cfg.optim_wrapper.pop("accumulative_counts", None)
    model, _, changed = train_step(cfg)
    adapters = list_adapters(model)
    assert adapters
    parts = {name.partition(".")[0] for name in changed}
    assert {"backbone", "decode_head"} <= parts
    assert any("adapters" in name for name in changed)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert not frozen & changed


def test_mask2former_wraps_and_trains():
    pytest.importorskip(
        "mmdet.models",
        reason="needs mmdet and an mmcv with compiled operators (docs/wrap.md)",
        exc_type=ImportError,
    )
    cfg = wrap_config(stock("mask2former/mask2former_swin-t_8xb2-90k_cityscapes-512x1024.py"))
    shrink(cfg)
    model, _, changed = train_step(cfg)
    assert len(list_adapters(model)) == 48  # 8 blocks of q, k, v, proj, fc1, fc2
    assert {name.partition(".")[0] for name in changed} == {"backbone", "decode_head"}
    assert any("adapters" in name for name in changed)


def test_the_written_config_is_the_wrapped_one(tmp_path):
    base = stock(SOME[3])
    base.custom_imports = dict(imports=["json"], allow_failed_imports=False)
    base.custom_hooks = [dict(type="EMAHook")]
    base.dump(tmp_path / "base.py")
    base = Config.fromfile(tmp_path / "base.py")
    notes: list[str] = []
    wrapped = wrap_config(base, adapter=dict(rank=8), sync_bn=False, notes=notes)
    text = config_text(base, wrapped, '"./base.py"', "mine")
    assert "backbone=_base_.model.backbone" in text and "*_base_.custom_hooks" in text
    (tmp_path / "mine.py").write_text(text)
    assert Config.fromfile(tmp_path / "mine.py").to_dict() == wrapped.to_dict()
    assert wrapped.custom_imports.imports == ["json", "snella_seg.register"]
    assert [hook.type for hook in wrapped.custom_hooks] == ["EMAHook", "SparsityAllocationHook"]
    assert wrapped.optim_wrapper.paramwise_cfg.decay_rate == 0.65
    assert wrapped.default_hooks.checkpoint.type == "SnellaCheckpointHook"
    assert "SyncBN" not in str(wrapped.model)
    assert any("0.65" in line for line in notes)


def test_what_cannot_be_wrapped_says_so():
    cfg = wrap_config(stock(SOME[6]))
    with pytest.raises(ValueError, match="wrapped already"):
        wrap_config(cfg)
    with pytest.raises(ValueError, match="no model.backbone.*image_encoder"):
        wrap_config(stock("san/san-vit-b16_pascal_context-640x640.py"))


def test_a_missing_package_is_named(monkeypatch):
    path = snella_seg.stock("mask2former/mask2former_swin-s_8xb2-160k_ade20k-512x512.py")[0]
    monkeypatch.setattr("snella_seg.cli.reading.importlib.util.find_spec", lambda module: None)
    with pytest.raises(ImportError, match="needs mmdet: pip install onedl-mmdetection"):
        need_packages(path)


@pytest.mark.parametrize("stock_constructor", [False, True])
def test_layer_decay_of_a_wrapped_backbone(stock_constructor):
    """MAE's rule: a factor for each block behind, in ours and in mmseg's own constructor."""
    cfg = stock(SOME[3])
    wrapped = wrap_config(cfg, lr_mult=1.0)
    shrink(wrapped)
    if stock_constructor:
        wrapped.optim_wrapper = cfg.optim_wrapper
    init_default_scope("mmseg")
    model = MODELS.build(wrapped.model)
    groups = build_optim_wrapper(model, wrapped.optim_wrapper).optimizer.param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    base = wrapped.optim_wrapper.optimizer.lr
    seen = set()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = 0
        if name.startswith("backbone.backbone.layers."):
            depth = 4 - int(name.split(".")[3])
        elif name.endswith("cls_token"):
            depth = 5
        seen.add(depth)
        assert rates[id(parameter)] == pytest.approx(base * 0.65**depth), name
    assert seen >= {0, 1, 2, 3, 4}
