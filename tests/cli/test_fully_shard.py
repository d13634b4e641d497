"""Two processes that share a frozen base, against two that hold it whole each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, history, run_tool, save_base, scores_of, write_tiny_config

from snella_seg.loading.header import HEADER

CONFIG = """
_base_ = './tiny.py'
model = dict(backbone=dict(base_checkpoint='BASE'))
model_wrapper_cfg = dict(type="SnellaFullyShard")
default_hooks = dict(checkpoint=dict(type="SnellaCheckpointHook", interval=3, save_best="mIoU"))
train_cfg = dict(max_iters=6, val_interval=3)
"""
RECORDED = """
_base_ = './config.py'
custom_hooks = [
    dict(type="SparsityAllocationHook", target_sparsity=0.5, interval=2),
    dict(type="SaveRank"),
]
"""
#: What a batch is does not depend on how many processes share it.
SAME_BATCH = """
_base_ = './config.py'
norm = dict(norm_cfg=dict(_delete_=True, type="GN", num_groups=4), dropout_ratio=0)
model = dict(decode_head=norm, auxiliary_head=norm)
custom_hooks = [dict(type="SparsityAllocationHook", target_sparsity=0.5, interval=2)]
train_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
"""
WHOLE_BATCH = ("--cfg-options", "train_dataloader.batch_size=4")  # of two processes


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_dataset) -> Path:
    """Folder of runs: by DDP, sharded, resumed from its middle, in mixed precision; then of the
    same batches: by one process, by two, begun by one and gone on with by two, and the reverse."""
    folder = tmp_path_factory.mktemp("sharded")
    tiny = write_tiny_config(folder, tiny_dataset)
    base = save_base(tiny, folder / "base.pth")
    (folder / "config.py").write_text(CONFIG.replace("BASE", base.as_posix()))
    recorded, same = folder / "recorded.py", folder / "same.py"
    recorded.write_text(RECORDED)
    same.write_text(SAME_BATCH)
    assert run_tool("train", same, "--work-dir", folder / "alone", *WHOLE_BATCH) == 0
    whole = "default_hooks.checkpoint.slim=False"
    asked = {
        "ddp": [recorded, "--cfg-options", "model_wrapper_cfg.type=MMDistributedDataParallel"],
        "sharded": [recorded],
        "resumed": [recorded, "--resume", folder / "sharded/iter_3.pth", "--cfg-options", whole],
        "amp": [recorded, "--amp", "--cfg-options", "train_cfg.max_iters=3"],
        "together": [same],
        "joined": [same, "--resume", folder / "alone/iter_3.pth"],
    }
    launch = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    done = subprocess.run(
        [
            sys.executable,
            *launch,
            ROOT / "tests/cli/sharded_runs.py",
            json.dumps(asked, default=str),
        ],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": path,
            "PYTHONFAULTHANDLER": "1",  # a process that aborts tells where
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    left = ("--work-dir", folder / "left", "--resume", folder / "together/iter_3.pth")
    assert run_tool("train", same, *left, *WHOLE_BATCH) == 0
    return folder


def ranks_of(run: Path) -> list[dict]:
    return [torch.load(run / f"rank{rank}.pth") for rank in range(2)]


def check_adapters(found: dict, expected: dict) -> None:
    """Sparsities are equal, factors to rounding. AdamW makes steps of 1e-2 of a gradient's noise,
    which some weights of the heads have for a gradient: those are left to the losses."""
    assert found.keys() == expected.keys()
    names = [name for name in expected if ".adapters." in name]
    assert len(names) > 20
    for name in names:
        tolerance = 0 if name.endswith(".sparsity") else 1e-3
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=tolerance)


def test_a_sharded_base_trains_as_a_whole_one(runs):
    for whole, sharded in zip(ranks_of(runs / "ddp"), ranks_of(runs / "sharded"), strict=True):
        assert sharded["losses"] == pytest.approx(whole["losses"], rel=1e-4)
        check_adapters(sharded["task"], whole["task"])
    lines, expected = (history(runs / name) for name in ("sharded", "ddp"))
    assert [line["sparsity"] for line in lines] == [line["sparsity"] for line in expected]
    assert [line["iter"] for line in lines] == [0, 2, 4]


def test_processes_keep_equal_adapters(runs):
    first, second = (rank["task"] for rank in ranks_of(runs / "sharded"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_each_process_holds_half_of_the_base(runs):
    for whole, sharded in zip(ranks_of(runs / "ddp"), ranks_of(runs / "sharded"), strict=True):
        assert len(sharded["frozen"]) == 6  # after every step, validations in between
        assert {2 * held for held in sharded["frozen"]} == set(whole["frozen"])
        assert set(sharded["unaccounted"]) == {0}


@pytest.mark.parametrize("name", ["iter_3.pth", "iter_6.pth"])
def test_checkpoints_are_plain(name, runs):
    states = [
        torch.load(runs / run / name, weights_only=False)["state_dict"]
        for run in ("ddp", "sharded")
    ]
    whole, sharded = states
    check_adapters(sharded, whole)
    assert torch.equal(sharded[f"backbone.{HEADER}"], whole[f"backbone.{HEADER}"])  # all digests
    assert all(type(value) is torch.Tensor for value in sharded.values())


def test_a_resumed_run_ends_alike_and_saves_the_base_if_asked(runs):
    for unbroken, resumed in zip(
        ranks_of(runs / "sharded"), ranks_of(runs / "resumed"), strict=True
    ):
        assert resumed["losses"] == pytest.approx(unbroken["losses"][3:], rel=1e-4)
        check_adapters(resumed["task"], unbroken["task"])
    state = torch.load(runs / "resumed/iter_6.pth", weights_only=False)["state_dict"]
    base = torch.load(runs / "base.pth")
    frozen = {n: v for n, v in base.items() if n != "cls_token"}
    assert len(frozen) > 20
    assert all(torch.equal(state[f"backbone.backbone.{n}"], v) for n, v in frozen.items())


@pytest.mark.parametrize("name", ["together", "joined", "left"])
def test_another_number_of_processes_goes_on_alike(name, runs):
    expected, found = (
        torch.load(runs / run / "iter_6.pth", weights_only=False)["state_dict"]
        for run in ("alone", name)
    )
    check_adapters(found, expected)
    lines, unbroken = (history(runs / run) for run in (name, "alone"))
    resumed = [line for line in unbroken if line["iter"] > 3] if name != "together" else unbroken
    assert [line["sparsity"] for line in lines] == [line["sparsity"] for line in resumed]


def test_one_process_tests_and_merges_what_two_have_trained(runs, tool, tmp_path):
    scores = []
    for run in ("ddp", "resumed"):
        checkpoint, found = runs / run / "iter_6.pth", tmp_path / run
        assert tool("test", runs / "config.py", checkpoint, "--work-dir", found).code == 0
        scores.append(scores_of(found))
    assert scores[0]["mIoU"] == pytest.approx(scores[1]["mIoU"], abs=0.5)
    checkpoint = runs / "sharded/iter_6.pth"
    assert tool("merge", runs / "config.py", checkpoint, tmp_path / "merged").code == 0


def test_mixed_precision_trains_by_shares(runs):
    for whole, low in zip(ranks_of(runs / "ddp"), ranks_of(runs / "amp"), strict=True):
        assert low["losses"] != whole["losses"][:3]
        assert low["losses"] == pytest.approx(whole["losses"][:3], rel=0.1)
