"""tools/preflight.py: what it foretells is what happens; what would go wrong silently is told."""

import json

import pytest
import torch
from helpers import history
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

import snella_seg.register  # noqa: F401
from snella_seg.lab.preflight.forecast import Forecast
from snella_seg.lab.preflight.probe import average_budget
from snella_seg.lab.text import duration, size

SLIM = "default_hooks.checkpoint.type=SnellaCheckpointHook"


@pytest.fixture
def config(tiny_config_file, tmp_path):
    """The tiny config with a file of base weights."""
    init_default_scope("mmseg")
    cfg = Config.fromfile(tiny_config_file)
    torch.manual_seed(0)
    backbone = MODELS.build(cfg.model.backbone.backbone)
    torch.save(backbone.state_dict(), tmp_path / "base.pth")
    path = tiny_config_file.with_name("with_base.py")
    path.write_text(
        f"_base_ = './{tiny_config_file.name}'\n"
        f"model = dict(backbone=dict(base_checkpoint={str(tmp_path / 'base.pth')!r}))\n"
    )
    return path


def test_what_it_foretells_happens(tool, config, tmp_path):
    found, run = tmp_path / "found.json", tmp_path / "run"
    done = tool("preflight", config, "--work-dir", run, "--json", found, "--cfg-options", SLIM)
    assert done.code == 0, done.out
    assert not run.exists()
    report = json.loads(found.read_text())
    assert report["problems"] == [] and report["unmatched"] == []
    assert "28 of 28 tensors found" in report["base"]
    assert done.out.count("none") >= 2 and "s per iteration" in done.out

    assert tool("train", config, "--work-dir", run, "--cfg-options", SLIM).code == 0
    lines = history(run)
    told = [tuple(entry) for entry in report["allocations"]]
    assert told == [(line["epoch"], line["iter"], line["budget"]) for line in lines]
    assert (report["nonzero"], report["nonzero_end"]) == (lines[0]["budget"], lines[-1]["budget"])
    written = sorted(run.glob("iter_*.pth"))
    assert report["checkpoints"] == len(written) == 2
    assert report["checkpoint_bytes"] == pytest.approx(written[-1].stat().st_size, rel=0.05)
    assert (report["validations"], report["validation_images"]) == (2, 2)
    model = MODELS.build(Config.fromfile(config).model)
    learnable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert report["learnable"] + report["learnable_heads"] == learnable


def test_without_a_probe_nothing_is_measured(tool, config):
    done = tool("preflight", config, "--iters", "0")
    assert done.code == 0 and "not measured" in done.out


def test_linear_layers_that_are_left_out_are_listed(tool, config):
    done = tool("preflight", config, "--iters", "0", "--cfg-options", "model.backbone.targets=[q]")
    listed = done.out.partition("not adapted")[2].partition("Schedule")[0].split()
    assert len(listed) == 10 and "layers.1.ffn.layers.1.fc2" in listed


HOOK = "custom_hooks.0"
PROBLEMS = {
    "random base": (["model.backbone.base_checkpoint=None"], "no pretrained weights"),
    "no competition": (["custom_hooks=[]"], "custom_hooks holds no SparsityAllocationHook"),
    "growing budget": (
        [f"{HOOK}.target_sparsity=0.1", "model.backbone.adapter.initial_sparsity=0.5"],
        "the budget grows",
    ),
    "more classes": (["model.decode_head.num_classes=7"], "decode_head has 7 classes, the train"),
    "shifted labels": (
        [f"val_dataloader.dataset.{part}reduce_zero_label=False" for part in ("", "pipeline.1.")],
        "reduce_zero_label is True in training and False in validation",
    ),
    "no checkpoint": (
        ["default_hooks.checkpoint.by_epoch=True"],
        "counts epochs in a loop of iterations, so none but the last",
    ),
    "idle end": (
        ["param_scheduler.type=PolyLR"]
        + ["param_scheduler.begin=0", "param_scheduler.end=4", "param_scheduler.by_epoch=False"],
        "the learning rate is 0 from 4 on",
    ),
    "endless schedule": (
        ["param_scheduler.type=PolyLR", "param_scheduler.end=100"]
        + ["param_scheduler.begin=0", "param_scheduler.by_epoch=False"],
        "PolyLR ends at 100, the run at 8",
    ),
    "dead adapters": (
        ["model.backbone.backbone.out_indices=[0]", "model.auxiliary_head.in_index=0"]
        + [f"model.{part}.in_channels=[32]" for part in ("neck", "decode_head")]
        + ["model.neck.scales=[1]", "model.decode_head.in_index=[0]"],
        "adapter parameters get no gradient: backbone.backbone.layers.1",
    ),
    "divergence": (["optim_wrapper.optimizer.lr=1e30"], "the loss is not finite"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_what_would_go_wrong_silently_is_told(case, tool, config):
    options, message = PROBLEMS[case]
    done = tool("preflight", config, "--iters", "1", "--cfg-options", *options)
    problems = done.out.partition("\nProblems\n")[2]
    assert done.code == 2 and message in problems


def test_full_fine_tuning_from_an_incomplete_file(tool, config, tmp_path):
    state = torch.load(tmp_path / "base.pth")
    del state["layers.0.ffn.layers.1.weight"]
    torch.save(state, tmp_path / "base.pth")
    keys = ("model.backbone.method=full", "model.backbone.adapter=None")
    done = tool("preflight", config, "--iters", "0", "--cfg-options", *keys)
    assert done.code == 2 and "full tuning would begin" in done.out


def test_a_config_that_cannot_run_is_an_error(tool, config):
    done = tool("preflight", config, "--cfg-options", "model.backbone.adapter.rank=3")
    assert done.code == 1 and "rank must be a positive multiple of heads" in done.err


def test_a_run_without_a_reallocation_is_an_error(tool, config):
    done = tool("preflight", config, "--cfg-options", f"{HOOK}.interval=100")
    assert done.code == 1 and "no reallocation would take place" in done.err


def test_the_average_iteration_between_two_budgets():
    allocations = [(0, 0, 100), (1, 10, 60), (2, 20, 20)]
    assert average_budget(allocations, 30) == pytest.approx((60 - 20) / 80)
    assert average_budget(allocations, 20) == pytest.approx((80 - 20) / 80)
    assert average_budget([(0, 0, 50)], 8) == 1.0


def test_reallocations_that_come_when_due_are_foretold_as_such():
    report = Forecast(iterations=10, allocations=[(0, 0, 9), (1, 5, 8)], due_at=0.1)
    assert "  1 reallocations at most, where more than 10.0% of the budget would" in report.text()
    assert "at most" not in Forecast(allocations=report.allocations).text()


def test_total_time_counts_everything():
    report = Forecast(iterations=10, seconds_per_iteration=2.0, reallocation_seconds=1.0)
    report.allocations = [(0, 0, 9), (1, 5, 8)]
    report.validations, report.validation_images = 2, 3
    report.seconds_per_validation_image = 0.5
    assert report.total_seconds == 20 + 1 + 3
    assert Forecast().total_seconds is None and Forecast().disk_bytes is None


def test_sizes_and_times_for_readers():
    assert [size(n) for n in (12, 2048, 3.5 * 2**20, 2**41)] == [
        "12 B", "2.0 KiB", "3.5 MiB", "2.0 TiB",
    ]  # fmt: skip
    assert [duration(s) for s in (7, 61, 7260)] == ["7 s", "1 min 1 s", "2 h 1 min"]
