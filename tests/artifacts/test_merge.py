"""Merged models: stock modules, stock files, the same results; and back again, bit for bit."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmseg.registry import MODELS
from tasks import SWIN, scores
from torch import nn

from snella_seg.artifacts import (
    find_wrapper,
    half_precision_loss,
    merge_adapters,
    merged_backbone,
    merged_segmentor,
    stock_config,
    unmerge_adapters,
)
from snella_seg.inject import add_adapters, list_adapters
from snella_seg.loading.names import to_own_names


def own_modules(model) -> list[str]:
    return [type(m).__name__ for m in model.modules() if "snella" in type(m).__module__]


def test_merged_modules_are_ordinary_and_compute_the_same(build, image):
    model = build(0)
    before = scores(model, image)
    expected = merged_backbone(model.backbone)
    assert merge_adapters(model) is model
    assert own_modules(model) == ["SnellaBackbone"]  # the frame around the stock backbone
    assert not list_adapters(model)
    assert not any(m._forward_hooks for m in model.modules())
    state = model.backbone.backbone.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    torch.testing.assert_close(scores(model, image), before, rtol=1e-4, atol=1e-5)
    pickle.loads(pickle.dumps(model.backbone.backbone))


def test_unmerging_restores_every_bit(build, image):
    model = build(0)
    state, output = copy.deepcopy(model.state_dict()), scores(model, image)
    parameters = {name: id(p) for name, p in model.named_parameters()}
    merge_adapters(model)
    assert not torch.equal(
        model.state_dict()["backbone.backbone.layers.0.attn.attn.in_proj_weight"],
        state["backbone.backbone.layers.0.attn.attn.in_proj_weight"],
    )
    unmerge_adapters(model)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert {name: id(p) for name, p in model.named_parameters()} == parameters  # for optimizers
    assert torch.equal(scores(model, image), output)
    model.backbone.train()
    sum(map(torch.sum, model.backbone(image))).backward()
    assert all(f.grad is not None for a in list_adapters(model).values() for f in a.factors)


def test_any_model_with_adapters_can_be_merged():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 4)).eval()
    add_adapters(model, dict(rank=2), ["0", "2"])
    for adapter in list_adapters(model).values():
        adapter.in_factors.data.normal_()
    x = torch.randn(3, 6)
    expected = model(x)
    merged = merge_adapters(model)
    assert [type(m) for m in merged] == [nn.Linear, nn.GELU, nn.Linear]
    torch.testing.assert_close(merged(x), expected)


def test_what_cannot_be_merged_is_refused(build):
    with pytest.raises(ValueError, match="carries no SNELLA adapters"):
        merge_adapters(nn.Linear(2, 2))
    model = build(0)
    with pytest.raises(ValueError, match="was not merged here"):
        unmerge_adapters(model)
    merge_adapters(model)
    with pytest.raises(ValueError, match="was not merged here"):
        unmerge_adapters(copy.deepcopy(model))


def test_disabled_adapters_are_merged_all_the_same(build):
    from snella_seg.inject import set_adapters_enabled

    model = build(0)
    expected = merged_backbone(model.backbone)
    set_adapters_enabled(model, False)
    assert all(torch.equal(v, expected[k]) for k, v in merged_backbone(model.backbone).items())


@pytest.mark.parametrize("backbone", ["vit", "swin"])
def test_the_stock_segmentor_gives_the_same_logits(build, image, backbone, config):
    options = {}
    if backbone == "swin":
        options = dict(backbone=SWIN, base_checkpoint=None, trainable=[])
        config.model.neck.update(in_channels=[16, 32])
    model = build(0, **options)
    stock = MODELS.build(stock_config(model.cfg).model)
    stock.load_state_dict(merged_segmentor(model), strict=True)
    stock.eval()
    torch.testing.assert_close(scores(stock, image), scores(model, image), rtol=1e-4, atol=1e-5)
    find_wrapper(model)[1].restore_modules()  # the same attention as stock: the same bits
    assert torch.equal(scores(stock, image), scores(model, image))


def test_the_stock_config_has_no_trace_and_keeps_the_rest(config):
    config.custom_hooks.append(dict(type="EmptyCacheHook"))
    config.custom_imports.imports.append("os")
    config.optim_wrapper.paramwise_cfg = dict(custom_keys=dict(adapters=dict(lr_mult=3), head={}))
    config.default_hooks.checkpoint.update(type="SnellaCheckpointHook", slim=True)
    config.piece = dict(type="SnellaBackbone", method="snella_v2")  # as the zoo's have it
    before = copy.deepcopy(config.to_dict())
    stock = stock_config(config)
    assert config.to_dict() == before
    assert "snella" not in stock.pretty_text.lower()
    assert stock.model.backbone == config.model.backbone.backbone
    assert [hook["type"] for hook in stock.custom_hooks] == ["EmptyCacheHook"]
    assert stock.custom_imports.imports == ["os"]
    assert "constructor" not in stock.optim_wrapper
    assert list(stock.optim_wrapper.paramwise_cfg.custom_keys) == ["head"]
    assert stock.default_hooks.checkpoint == dict(type="CheckpointHook", by_epoch=False, interval=4)
    for key in ("train_dataloader", "val_evaluator", "train_cfg", "test_pipeline"):
        assert stock[key] == config[key]


def test_paths_may_hold_our_name(config):
    folder = "/home/me/snella_seg/data"
    config.train_dataloader.dataset.data_root = folder
    config.train_dataloader.dataset.ann_file = f"{folder}/train.txt"
    config.val_evaluator.output_dir = f"{folder}/snella"
    stock = stock_config(config)
    assert stock.train_dataloader.dataset.ann_file == f"{folder}/train.txt"


def test_metrics_of_ours_become_those_of_mmseg(config):
    config.val_evaluator = [dict(type="ClassIoUMetric", iou_metrics=["mIoU"])]
    config.val_evaluator.append(dict(type="CalibrationMetric"))
    config.test_evaluator = dict(type="ClassIoUMetric", iou_metrics=["mDice"])
    stock = stock_config(config)
    assert stock.val_evaluator == [dict(type="IoUMetric", iou_metrics=["mIoU"])]
    assert stock.test_evaluator == dict(type="IoUMetric", iou_metrics=["mDice"])


def test_what_is_ours_by_type_is_named(config):
    config.train_dataloader.dataset.pipeline.append(dict(type="Night"))
    with pytest.raises(ValueError, match="which brings Night: use what mmseg has instead"):
        stock_config(config)


ONE_MAP = dict(in_channels=32, in_index=1)
LINEAR = dict(type="LinearHead", num_classes=4, align_corners=False)


@pytest.mark.parametrize("maps", [ONE_MAP, dict(in_channels=[32, 32], in_index=[0, 1])])
def test_a_linear_head_becomes_a_stock_one(build, image, config, maps):
    config.model.pop("neck")
    config.model.decode_head = {**LINEAR, **maps, "norm_cfg": dict(type="SyncBN", eps=1e-3)}
    config.model.auxiliary_head = [config.model.auxiliary_head, {**LINEAR, **ONE_MAP}]
    model = build(0)
    for head in (model.decode_head, model.auxiliary_head[1]):
        head.norm.running_mean.normal_(), head.norm.running_var.uniform_(0.5, 2.0)
    cfg = stock_config(model.cfg)
    stock = MODELS.build(cfg.model)
    stock.load_state_dict(merged_segmentor(model), strict=True)
    assert "snella" not in cfg.pretty_text.lower() and not own_modules(stock)
    assert type(stock.decode_head).__name__ == "FCNHead" and stock.decode_head.dropout_ratio == 0
    find_wrapper(model)[1].restore_modules()
    with torch.no_grad():
        image = image.flip(-1)
        expected, found = (m.eval().backbone(image) for m in (model, stock))
        for name in ("decode_head", "auxiliary_head"):
            heads = [getattr(m, name) for m in (model, stock)]
            ours, theirs = (head[1] if name == "auxiliary_head" else head for head in heads)
            torch.testing.assert_close(theirs(found), ours(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "norm", [dict(type="GN", num_groups=4), dict(type="BN", track_running_stats=False)]
)
def test_a_linear_head_of_another_norm_is_refused(config, norm):
    config.model.decode_head = {**LINEAR, **ONE_MAP, "norm_cfg": norm}
    with pytest.raises(ValueError, match="no stock head computes what LinearHead with norm_cfg"):
        stock_config(config)


def test_configs_that_cannot_be_stock_are_refused(config):
    timm_swin = dict(type="TIMMBackbone", model_name="swin_tiny_patch4_window7_224")
    config.model.backbone.backbone = timm_swin
    with pytest.raises(ValueError, match="timm's Swin"):
        stock_config(config)
    config.model.backbone = dict(type="VisionTransformer")
    with pytest.raises(ValueError, match="not a SnellaBackbone: there is nothing to merge"):
        stock_config(config)


WITHOUT_SNELLA = """
import runpy, sys
class Blocked:
    def find_spec(self, name, *_):
        if name.partition('.')[0] == 'snella_seg':
            raise ImportError(f'{name} is not installed')
sys.meta_path.insert(0, Blocked())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def test_stock_test_py_runs_what_the_tool_writes(tool, config_file, adapter_file, tmp_path):
    import mmseg

    out = tmp_path / "merged"
    merged = tool("merge", config_file, adapter_file, out)
    assert merged.code == 0, merged.err
    assert "with stock attention: largest difference of logits 0.00e+00" in merged.out
    tested = tool("test", config_file, adapter_file, "--work-dir", tmp_path / "adapted")
    stock = Path(mmseg.__file__).parent / ".mim" / "tools" / "test.py"
    arguments = [stock, out / "merged.py", out / "merged.pth", "--work-dir", tmp_path / "stock"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_SNELLA, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr

    def metrics(text: str) -> str:
        return (
            next(line for line in text.splitlines()[::-1] if "mIoU:" in line)
            .split("data_time")[0]
            .split("aAcc")[1]
        )

    assert metrics(done.stdout) == metrics(tested.out)


def test_half_precision_is_refused_with_what_it_costs(tool, build, config_file, adapter_file):
    wrapper = build(0).backbone
    losses = {n: (e, s) for n, e, s in half_precision_loss(wrapper, torch.bfloat16)}
    name = "layers.0.ffn.layers.0.0.weight"
    base = dict(wrapper.backbone.named_parameters())[name].detach()
    merged = merged_backbone(wrapper)[name]
    changed = merged != base
    rounded = merged.bfloat16().float()
    error = (rounded - merged)[changed].norm() / (merged - base)[changed].norm()
    same = (rounded == base.bfloat16().float())[changed].float().mean()
    assert losses[name] == pytest.approx((float(error), float(same)))
    finer = {n: e for n, e, _ in half_precision_loss(wrapper, torch.float16)}
    assert all(finer[n] < e for n, (e, _) in losses.items())

    out = adapter_file.parent / "half"
    refused = tool("merge", config_file, adapter_file, out, "--dtype", "bfloat16")
    assert refused.code == 1 and not out.exists()
    assert "in bfloat16 the merged weights lose" in refused.err and "--force" in refused.err
    forced = tool("merge", config_file, adapter_file, out, "--dtype", "bfloat16", "--force")
    assert forced.code == 0 and "warning: in bfloat16" in forced.out
    weights = torch.load(out / "merged.pth")["state_dict"]
    assert weights["backbone.layers.0.ln1.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("names", ["mmseg", "timm"])
def test_the_bare_backbone(tool, build, config_file, adapter_file, names, tmp_path):
    done = tool("merge", config_file, adapter_file, tmp_path, "--backbone", names)
    assert done.code == 0, done.err
    written = torch.load(tmp_path / f"backbone_{names}.pth")["state_dict"]
    expected = merged_backbone(build(0).backbone)
    if names == "timm":
        assert "blocks.0.attn.qkv.weight" in written
        written = to_own_names(written, set(expected))
    assert all(torch.equal(written[k], v) for k, v in expected.items())
