"""Every config loads anywhere and builds what its name says; downstream configs can inherit it."""

from pathlib import Path
from typing import NamedTuple

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import nn

import snella_seg
import snella_seg.register  # noqa: F401
from snella_seg.inject import is_adapter_key, list_adapters

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


class Leaf(NamedTuple):
    """What a config must hold; matrices = blocks x (q, k, v, proj, fc1, fc2)."""

    base: str
    matrices: int
    classes: int
    batch_size: int
    crop: tuple[int, int]
    trained: set[str]  # of the base


VIT = ("VisionTransformer", 12 * 6)
SWIN = ("SwinTransformer", 24 * 6)
NORMS = {f"norm{i}.{part}" for i in range(4) for part in ("weight", "bias")}
LEAVES = {
    "snella_upernet_ade20k.py": Leaf(*VIT, 150, 2, (512, 512), {"cls_token"}),
    "snella_upernet_pascal_context.py": Leaf(*VIT, 59, 2, (480, 480), {"cls_token"}),
    "snella_upernet_swin_ade20k.py": Leaf(*SWIN, 150, 2, (512, 512), NORMS),
    "snella_upernet_swin_pascal_context.py": Leaf(*SWIN, 59, 2, (480, 480), NORMS),
    "snella_upernet_camvid.py": Leaf(*VIT, 11, 8, (224, 320), {"cls_token"}),
    "snella_upernet_camvid_half.py": Leaf(*VIT, 11, 8, (160, 224), {"cls_token"}),
    "frozen_upernet_camvid.py": Leaf(VIT[0], 0, 11, 8, (224, 320), set()),
}


def build(cfg: Config) -> nn.Module:
    init_default_scope("mmseg")
    return MODELS.build(cfg.model)


@pytest.fixture(scope="module", params=LEAVES)
def loaded(request) -> tuple[Config, nn.Module, Leaf]:
    """A leaf config, its model and what they must hold."""
    cfg = Config.fromfile(CONFIGS / request.param)
    return cfg, build(cfg), LEAVES[request.param]


def test_all_leaf_configs_are_listed_here():
    elsewhere = {"snella_upernet_demo.py"}  # test_demo.py
    assert {path.name for path in CONFIGS.glob("*.py")} == set(LEAVES) | elsewhere


def test_model(loaded):
    cfg, model, leaf = loaded
    assert type(model.backbone).__name__ == "SnellaBackbone"
    assert type(model.backbone.backbone).__name__ == leaf.base
    assert len(list_adapters(model)) == leaf.matrices
    for head in (model.decode_head, model.auxiliary_head):
        assert head.num_classes == head.conv_seg.out_channels == leaf.classes
    base = model.backbone.backbone.named_parameters()
    trained = {name for name, p in base if p.requires_grad and not is_adapter_key(name)}
    assert trained == leaf.trained
    assert "checkpoint" in model.backbone.backbone.init_cfg


def test_data(loaded):
    cfg, _, leaf = loaded
    assert cfg.train_dataloader.batch_size == leaf.batch_size
    assert tuple(cfg.model.data_preprocessor["size"]) == leaf.crop
    crops = [t.crop_size for t in cfg.train_dataloader.dataset.pipeline if t.type == "RandomCrop"]
    assert [tuple(size) for size in crops] == [leaf.crop]


def test_optimizer(loaded):
    cfg, model, _ = loaded
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    names = {id(p): name for name, p in model.named_parameters()}
    factors = cfg.optim_wrapper.paramwise_cfg.custom_keys.adapters.lr_mult
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            decays = parameter.ndim > 1 and "cls_token" not in name
            assert (group["weight_decay"] > 0) == decays, name
            times = factors if is_adapter_key(name) else 1.0
            assert group["lr"] == pytest.approx(times * cfg.optim_wrapper.optimizer.lr), name


def test_schedule_and_hook(loaded):
    cfg, _, leaf = loaded
    assert max(schedule.end for schedule in cfg.param_scheduler) == cfg.train_cfg.max_iters
    hooks = [hook.type for hook in cfg.custom_hooks]
    assert hooks == ["SparsityAllocationHook"]


@pytest.mark.parametrize("name", LEAVES)
def test_loads_from_any_folder(name, tmp_path, monkeypatch):
    here = Config.fromfile(CONFIGS / name).pretty_text
    monkeypatch.chdir(tmp_path)
    assert Config.fromfile(CONFIGS / name).pretty_text == here


def load_text(folder: Path, text: str) -> Config:
    (folder / "mine.py").write_text(text)
    return Config.fromfile(folder / "mine.py")


def test_downstream_config_inherits_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = load_text(
        tmp_path,
        """
_base_ = __import__('snella_seg').own('snella_upernet_camvid.py')

model = dict(
    backbone=dict(adapter=dict(rank=8), targets=['q', 'v']), decode_head=dict(num_classes=7)
)
custom_hooks = [dict(type='SparsityAllocationHook', target_sparsity=0.5)]
""",
    )
    adapters = list_adapters(build(cfg))
    assert len(adapters) == 12 * 2
    assert {(a.rank, a.rule.kernel) for a in adapters.values()} == {(8, "centred")}
    assert cfg.custom_hooks[0].target_sparsity == 0.5
    assert cfg.train_cfg.max_iters == 552


def test_recipe_around_a_stock_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stock = "swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py"
    cfg = load_text(
        tmp_path,
        f"""
_base_ = __import__('snella_seg').stock('{stock}')

custom_imports = dict(imports=['snella_seg.register'])
model = dict(backbone=dict(
    _delete_=True, type='SnellaBackbone', backbone={{{{_base_.model.backbone}}}}))
custom_hooks = [dict(type='SparsityAllocationHook', target_sparsity=0.8)]
""",
    )
    model = build(cfg)
    assert len(list_adapters(model)) == 12 * 6
    base = Config.fromfile(snella_seg.stock(stock)[0]).model.backbone
    assert model.backbone.backbone.init_cfg == base.init_cfg
    assert cfg.model.backbone.backbone == base


def test_own_finds_configs():
    paths = snella_seg.own("snella_upernet_ade20k.py", "_base_/camvid.py")
    assert paths == [str(CONFIGS / "snella_upernet_ade20k.py"), str(CONFIGS / "_base_/camvid.py")]


@pytest.mark.parametrize("find", [snella_seg.own, snella_seg.stock])
def test_unknown_config_names(find):
    with pytest.raises(ValueError, match="name at least one config"):
        find()
    with pytest.raises(FileNotFoundError, match=r"no config nowhere/x.py in .*configs$"):
        find("nowhere/x.py")


def test_unknown_config_lists_neighbours():
    with pytest.raises(FileNotFoundError, match="near matches: .*snella_upernet_ade20k.py"):
        snella_seg.own("snella_upernet_ade.py")
    with pytest.raises(FileNotFoundError, match="near matches: .*ade20k.py"):
        snella_seg.stock("_base_/datasets/ade.py")


def test_stock_without_mmsegmentation(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'snella_seg\[mm\]'"):
        snella_seg.stock("_base_/default_runtime.py")


def test_environment_names_the_shared_folder(monkeypatch):
    monkeypatch.setenv("SNELLA_SHARED", "/some/where")
    cfg = Config.fromfile(CONFIGS / "snella_upernet_camvid.py")
    assert cfg.train_dataloader.dataset.data_root == "/some/where/data/camvid"
    assert cfg.model.pretrained.startswith("/some/where/weights/")
