"""tools/compare.py: what runs, that it goes on where it was cut off, and what it reports."""

import json
import re
import shutil

import numpy as np
import pytest
from helpers import import_peft
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

import snella_seg.register  # noqa: F401
from snella_seg.inject import METHODS, list_adapters
from snella_seg.lab.compare import compare
from snella_seg.lab.compare.cases import Case, choose, mean_iou
from snella_seg.lab.compare.plan import Run, run_config, split
from snella_seg.lab.compare.rates import GROWTHS
from snella_seg.lab.compare.statistics import (
    class_means,
    mean_curve,
    mean_spread,
    paired_difference,
)
from snella_seg.lab.compare.variant import Variant


@pytest.fixture
def tiny(tiny_config_file) -> Config:
    init_default_scope("mmseg")
    return Config.fromfile(tiny_config_file)


def rates(cfg: Config) -> dict[str, set[float]]:
    """Learning rates of the backbone's and of the other parameters, by the real optimizer."""
    model = MODELS.build(cfg.model)
    names = {id(p): n for n, p in model.named_parameters()}
    found: dict[str, set[float]] = {"backbone": set(), "heads": set()}
    for group in build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups:
        for parameter in group["params"]:
            inside = names[id(parameter)].startswith("backbone.")
            found["backbone" if inside else "heads"].add(round(group["lr"], 10))
    return found


@pytest.mark.parametrize("method", ["full", "bitfit", "lora", "snella"])
def test_learning_rates_reach_the_optimizer(method, tiny):
    cfg = run_config(tiny, Run(method, lr=3e-4, head_lr=2e-3))
    assert rates(cfg) == {"backbone": {3e-4}, "heads": {2e-3}}


def test_rates_go_before_other_rules_and_leave_decay_alone(tiny):
    keys = {
        "backbone.backbone.layers.0": dict(lr_mult=7.0),
        "cls_token": dict(lr_mult=3.0, decay_mult=0.0),
        "decode_head": dict(lr_mult=10.0),
    }
    tiny.optim_wrapper.paramwise_cfg = dict(custom_keys=keys, norm_decay_mult=0.0)
    cfg = run_config(tiny, Run("full", lr=1e-5, head_lr=1e-3))
    assert rates(cfg) == {"backbone": {1e-5}, "heads": {1e-3}}
    model = MODELS.build(cfg.model)
    names = {id(p): n for n, p in model.named_parameters()}
    decay = {
        names[id(p)]: group["weight_decay"]
        for group in build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
        for p in group["params"]
    }
    assert decay["backbone.backbone.cls_token"] == 0
    assert (
        decay["backbone.backbone.layers.0.ln1.weight"] == 0.01
    )  # its custom key says nothing of it
    assert decay["backbone.backbone.layers.1.ln1.weight"] == 0
    assert decay["decode_head.conv_seg.weight"] == 0.01


def test_other_constructors_are_refused(tiny):
    tiny.optim_wrapper.constructor = "LearningRateDecayOptimizerConstructor"
    with pytest.raises(ValueError, match="learning rates can be set where optim_wrapper.constr"):
        run_config(tiny, Run("snella", lr=1e-3))


def test_the_heads_rate_leaves_the_backbones_alone(tiny):
    tiny.optim_wrapper.paramwise_cfg = dict(custom_keys=dict(adapters=dict(lr_mult=0.5)))
    cfg = run_config(tiny, Run("snella", head_lr=2e-3))
    assert rates(cfg) == {"backbone": {5e-3, 1e-2}, "heads": {2e-3}}  # factors, class token
    assert tiny.optim_wrapper.optimizer.lr == 1e-2  # the config that was given stays as it was


def test_a_run_of_another_length_has_its_schedule(tiny):
    tiny.param_scheduler = [
        dict(type="LinearLR", begin=0, end=2, by_epoch=False),
        dict(type="PolyLR", begin=2, end=8, by_epoch=False),
        dict(type="MultiStepLR", milestones=[4, 6], by_epoch=False),
    ]
    cfg = run_config(tiny, Run("snella"), iters=80)
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (80, 40)
    assert [(s.get("begin"), s.get("end")) for s in cfg.param_scheduler[:2]] == [(0, 20), (20, 80)]
    assert cfg.param_scheduler[2].milestones == [40, 60]
    assert cfg.default_hooks.checkpoint.interval == 40


def test_searches_see_no_validation_image(tiny):
    cfg = run_config(tiny, Run("snella", search=True), holdout=0.5)
    training, held = (cfg[f"{x}_dataloader"].dataset for x in ("train", "val"))
    assert training.data_prefix == held.data_prefix == tiny.train_dataloader.dataset.data_prefix
    assert not set(training.indices) & set(held.indices)
    assert sorted(training.indices + held.indices) == [0, 1, 2, 3]
    assert held.pipeline == tiny.val_dataloader.dataset.pipeline


def test_the_held_out_part_is_five_stretches():
    training, held = split(100, 0.2)
    assert held == [i for end in (20, 40, 60, 80, 100) for i in range(end - 4, end)]
    assert sorted(training + held) == list(range(100))
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\), got 1.0"):
        split(10, 1.0)
    assert split(4, 0.5) == ([0, 2], [1, 3])
    with pytest.raises(ValueError, match="2 training images are too few"):
        split(2, 0.2)


def test_variants():
    variant = Variant.parse("snella:scale=0.3,target_sparsity=0.9,importance=magnitude")
    assert dict(variant.adapter) == {"scale": 0.3}
    assert dict(variant.hook) == {"target_sparsity": 0.9, "importance": "magnitude"}
    assert variant.label == "SNELLA (scale 0.3, target_sparsity 0.9, importance magnitude)"


@pytest.mark.parametrize(
    "text, message",
    [
        ("snela", "unknown method 'snela'"),
        ("snella:scal=1", "unknown option 'scal'; choose one of rank, heads"),
        ("lora:reallocate=when_due", "reallocate has no effect on LoRA"),
        ("snella:scale", "write options as scale=VALUE"),
        ("frozen:rank=8", "rank has no effect on frozen"),
        ("lora:target_sparsity=0.9", "target_sparsity has no effect on LoRA"),
        ("lora:kernel=mixed", "method lora sets kernel by itself"),
        ("lora:token_share=0.5", "method lora sets token_share by itself"),
        ("full:token_share=0.5", "token_share has no effect on full fine-tuning"),
        ("snell:allocation=uniform", "allocation has no effect on SNELL"),
        ("snella_magnitude", "is now a variant: snella:importance=magnitude"),
    ],
)
def test_variants_that_make_no_sense(text, message):
    with pytest.raises(ValueError, match=message):
        Variant.parse(text)


@pytest.mark.parametrize(
    "text, message",
    [
        ("peft:config=Nonsense", "peft has no config 'Nonsense'; it has .*LoraConfig"),
        ("peft:config=LoraConfg", "peft has no config 'LoraConfg'; it has LoraConfig"),
        ("peft:config=LoraConfig,rr=3", "LoraConfig of peft does not take 'rr'; choose one of r"),
        ("peft:r=3", "method='peft' needs config, a class of peft such as 'LoraConfig'"),
        ("snella:kernel=nonsense", "unknown kernel 'nonsense'"),
        ("snella:rank=7", "rank"),  # the config has two heads
        ("snella_v2:schedule=never", "unknown schedule 'never'; choose one of cubic"),
        ("snella:target_sparsity=2", "target_sparsity must lie in"),
    ],
)
def test_values_are_refused_before_any_run(tiny, tmp_path, text, message):
    if text.startswith("peft"):
        import_peft()
    tiny.model.backbone.adapter = dict(rank=8, heads=2)
    with pytest.raises(ValueError, match=message):
        compare(tiny, "c.py", ["frozen", text], work_dir=str(tmp_path / "study"))
    assert not (tmp_path / "study").exists()


def test_a_variant_reaches_the_config(tiny):
    cfg = run_config(tiny, Run("snella:rank=8,target_sparsity=0.25"))
    assert cfg.model.backbone.adapter == {"rank": 8}
    assert cfg.custom_hooks[0].target_sparsity == 0.25
    cfg = run_config(tiny, Run("snella_v2:reallocate=when_due,due_at=0.2,schedule=late"))
    hook = cfg.custom_hooks[0]
    assert (hook.reallocate, hook.due_at, hook.schedule) == ("when_due", 0.2, "late")
    tiny.custom_hooks = []
    with pytest.raises(ValueError, match="target_sparsity belongs to SparsityAllocationHook"):
        run_config(tiny, Run("snella:target_sparsity=0.25"))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_fits_a_config_that_spells_snella_out(method, tiny):
    """A comparison leaves out what of the config another method cannot or must not take over."""
    tiny.model.backbone.update(
        adapter=dict(rank=8, kernel="mixed", sparsifier="soft", initial_sparsity=0.1, scale=0.3),
        targets=["q", "fc1"],
        trainable=["cls_token"],
    )
    tiny.custom_hooks[0].allocation = "uniform"
    if method == "peft":
        import_peft()
    cfg = run_config(tiny, Run("peft:config=LoraConfig,r=4" if method == "peft" else method))
    model = MODELS.build(cfg.model)
    adapters = list_adapters(model).values()
    assert len(adapters) == (4 if METHODS[method].adapts else 0)
    if method == "lora":
        assert {(a.rank, a.rule.scale) for a in adapters} == {(8, 1.0)}
    if method == "snell":
        assert {(a.rule.sparsifier, a.rule.scale) for a in adapters} == {("soft", 0.3)}
    assert ("allocation" in cfg.custom_hooks[0]) == (METHODS[method].allocation == "competition")


def test_only_wrapped_configs(tiny):
    tiny.model.backbone = tiny.model.backbone.backbone
    with pytest.raises(ValueError, match="only configs whose model.backbone is a SnellaBackbone"):
        run_config(tiny, Run("snella"))


def rows(*scores: float) -> list[dict]:
    return [{"seed": i, "mIoU": s, "classes": {"a": s}} for i, s in enumerate(scores)]


def test_statistics():
    assert mean_spread([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_spread([4.0]) == (4.0, None)
    mean, error = paired_difference(rows(3.0, 5.0, 7.0), rows(2.0, 3.0, 4.0))
    assert (mean, error) == (2.0, pytest.approx(3**-0.5))
    assert class_means([*rows(1.0, 3.0), {"classes": {"b": 5.0}}]) == {"a": 2.0, "b": 5.0}
    steps, means, lows, highs = mean_curve([[(1, 2.0), (2, 3.0)], [(1, 4.0)]])
    assert (steps, means, lows, highs) == ([1], [3.0], [2.0], [4.0])


def test_differences_of_what_some_runs_lack():
    first, second = rows(3.0, 5.0, 7.0), rows(2.0, 3.0, 4.0)
    first[0]["NLL"], first[1]["NLL"], first[2]["NLL"] = 0.5, None, 0.75
    second[0]["NLL"], second[1]["NLL"] = 0.25, 0.5
    assert paired_difference(first, second, "NLL") == (0.25, None)
    assert np.isnan(paired_difference(first[2:], second, "NLL")[0])  # no seed in common


def test_the_score_of_an_image_counts_the_classes_that_it_holds():
    labels = np.array([[0, 0, 1], [1, 1, -1]])
    assert mean_iou(np.array([[0, 0, 1], [1, 1, 0]]), labels) == 100.0
    assert mean_iou(np.array([[0, 2, 1], [1, 0, 1]]), labels) == pytest.approx(50 * (1 / 3 + 2 / 3))
    assert np.isnan(mean_iou(labels, np.full((2, 3), -1)))


def test_cases_go_evenly_from_the_most_gain_to_the_most_loss():
    empty = np.zeros((1, 1), int)
    gains = [3.0, -4.0, 10.0, 1.0, 0.0, -2.0, 5.0]
    cases = [
        Case(
            str(gain), empty, empty, scores={"frozen": 50.0, "lora": 50 + gain, "snella": 50 + gain}
        )
        for gain in gains
    ]
    assert [case.name for case in choose(cases, "frozen", 3)] == ["10.0", "1.0", "-4.0"]
    assert len(choose(cases, "frozen", 20)) == 7 and choose([], "frozen", 4) == []


@pytest.fixture
def options(tiny_config_file, tmp_path):
    return (
        *("compare", tiny_config_file, "--work-dir", tmp_path / "study"),
        *("--methods", "frozen", "snella", "--seeds", "2", "--lrs", "1e-3", "1e-2"),
        *("--search-iters", "4", "--holdout", "0.25", "--cost-rounds", "1", "--first-seed", "5"),
    )


def test_a_comparison_from_search_to_report(tool, options, tmp_path):
    done = tool(*options)
    assert done.code == 0, done.err
    study, folder = json.loads((tmp_path / "study/study.json").read_text()), tmp_path / "study"
    assert [(r["method"], r["lr"]) for r in study["search"][:2]] == [
        ("snella", 1e-3), ("snella", 1e-2)
    ]  # fmt: skip
    assert len(study["search"]) <= 2 + GROWTHS  # beyond, while the best is at the edge
    best = max(study["search"], key=lambda row: row["mIoU"])["lr"]
    found = [(r["method"], r["lr"], r["seed"]) for r in study["runs"]]
    assert found == [(m, r, s) for s in (5, 6) for m, r in (("frozen", None), ("snella", best))]
    for row in study["runs"]:
        mean = sum(row["classes"].values()) / len(row["classes"])
        assert row["mIoU"] == pytest.approx(mean, abs=0.02)
        assert [step for step, _ in row["validations"]] == [4, 8]
    costs = study["costs"]
    assert costs["frozen"]["learnable"] == 0 < costs["snella"]["learnable"]
    assert all(cost["seconds_per_iteration"] > 0 for cost in costs.values())
    assert {row["seed"] for row in study["search"]} == {0}

    text, page = ((folder / f"report.{end}").read_text() for end in ("md", "html"))
    for row in study["runs"][:2]:
        both = [r["mIoU"] for r in study["runs"] if r["method"] == row["method"]]
        assert f"{sum(both) / 2:.2f} ±" in text and f"{sum(both) / 2:.2f} ±" in page
    pictures = set(re.findall(r"\]\((\w+\.png)\)", text))
    expected = {"scores.png", "curves.png", "classes.png", "cases.png", "costs.png", "search.png"}
    assert pictures == expected and page.count("data:image/png") == len(pictures)
    assert all((folder / name).stat().st_size > 5000 for name in pictures)
    assert not re.search(r"(src|href)=\"https?:", page)
    trained = len(study["search"]) + 4
    assert f"hours, by {trained} of {trained} runs" in text

    # again, with a run that was cut off before its end: only that one is trained
    cut = folder / "runs" / study["runs"][1]["folder"]
    (cut / "result.json").unlink()
    done = tool(*options)
    assert done.code == 0
    assert done.out.count("was there") == len(study["search"]) + 3
    again = json.loads((folder / "study.json").read_text())
    assert [r["mIoU"] for r in again["runs"]] == [r["mIoU"] for r in study["runs"]]

    # with another config in the same folder nothing is mixed up
    done = tool(*options, "--cfg-options", "model.backbone.adapter.rank=2")
    assert done.code == 1 and "holds a run of another config" in done.err
    shutil.rmtree(folder)


def test_a_failed_run_is_reported_and_the_others_go_on(tool, options, tmp_path):
    arguments = [*options[:4], "--methods", "frozen", "snella:rank=1024", "--seeds", "1"]
    done = tool(*arguments, "--cost-rounds", "0")
    assert done.code == 1
    assert (
        "1 runs failed" in done.err
        and "is above the smaller side of every adapted matrix" in done.err
    )
    text = (tmp_path / "study/report.md").read_text()
    assert "## Failed runs" in text and "is above the smaller side" in text
    assert "| frozen |" in text


def test_bad_options(tool, tiny_config_file):
    done = tool("compare", tiny_config_file, "--methods", "loar")
    assert done.code == 1 and "unknown method 'loar'" in done.err
    for option, value, message in (
        ("--seeds", "-1", "seeds, first_seed and cases must not be negative"),
        ("--first-seed", "-1", "seeds, first_seed and cases must not be negative"),
        ("--seeds", "0", "there is nothing to do"),
    ):
        done = tool("compare", tiny_config_file, option, value)
        assert done.code == 1 and message in done.err
