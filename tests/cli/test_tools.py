"""tools/train.py and tools/test.py on a tiny model, and mmseg's own tools on the same config."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT, history, same_metrics, scores_of, validations
from mmengine.config import Config

TOTAL = 2 * 12 * 32 * 32  # weights of two blocks: four matrices D x D, two of 4D x D


def run(*command, **env) -> subprocess.CompletedProcess:
    """Run ``python ...`` as a user would; its output is shown when the test fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in env.items()}}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    print(done.stdout, done.stderr, sep="\n")
    return done


def sparsity_name(matrix: str) -> str:
    """Under what name the sparsity of a matrix is saved."""
    module, _, kind = matrix.rpartition(".")
    return f"{module}.adapters.{kind}.sparsity"


def derive(config: Path, text: str) -> Path:
    """A config that inherits ``config``."""
    path = config.with_name("derived.py")
    path.write_text(f"_base_ = './{config.name}'\n{text}")
    return path


@pytest.fixture
def trained(tool, tiny_config_file, tmp_path):
    """Work dir of a run of 8 iterations with validations and checkpoints at 4 and 8."""
    work_dir = tmp_path / "run"
    assert tool("train", tiny_config_file, "--work-dir", work_dir).code == 0
    return work_dir


def test_train_then_test_as_commands(tiny_config_file, tmp_path):
    work_dir = tmp_path / "run"
    done = run(ROOT / "tools/train.py", tiny_config_file, "--work-dir", work_dir)
    assert done.returncode == 0
    assert [v["step"] for v in validations(work_dir)] == [4, 8]
    assert (work_dir / "iter_8.pth").is_file()
    assert "SNELLA budget of epoch 3" in done.stdout

    checkpoint, test_dir = work_dir / "iter_8.pth", tmp_path / "test"
    done = run(ROOT / "tools/test.py", tiny_config_file, checkpoint, "--work-dir", test_dir)
    assert done.returncode == 0
    assert same_metrics(scores_of(test_dir), validations(work_dir)[-1])
    assert f"mIoU: {scores_of(test_dir)['mIoU']:.4f}" in done.stdout
    assert "not safely load" not in done.stdout + done.stderr


def test_stock_tools_run_the_same_config(tiny_config_file, tmp_path):
    import mmseg

    tools, work_dir = Path(mmseg.__file__).parent / ".mim/tools", tmp_path / "run"
    done = run(tools / "train.py", tiny_config_file, "--work-dir", work_dir)
    assert done.returncode == 0
    checkpoint, test_dir = work_dir / "iter_8.pth", tmp_path / "test"
    done = run(tools / "test.py", tiny_config_file, checkpoint, "--work-dir", test_dir)
    assert done.returncode == 0
    assert same_metrics(scores_of(test_dir), validations(work_dir)[-1])


def test_history_spends_the_scheduled_budget(trained):
    lines = history(trained)
    assert [line["iter"] for line in lines] == [0, 2, 4, 6]
    # V(e) = V1 + (V0 - V1) * ((E - f - e) / (E - f))^3 with V0 = 2 V1, E = 4 and f = 1
    expected = [TOTAL, *(TOTAL * (27 + left**3) // 54 for left in (2, 1, 0))]
    assert [line["budget"] for line in lines] == expected
    assert all(sum(line["nonzero"].values()) == line["budget"] for line in lines)
    saved = torch.load(trained / "iter_8.pth", weights_only=False)["state_dict"]
    for matrix, sparsity in lines[-1]["sparsity"].items():
        assert saved[sparsity_name(matrix)].item() == sparsity


def test_training_learns(tool, tiny_config_file, tmp_path):
    options = ("train_cfg.max_iters=60", "train_cfg.val_interval=20")
    done = tool("train", tiny_config_file, "--work-dir", tmp_path, "--cfg-options", *options)
    assert done.code == 0
    scores = [v["mIoU"] for v in validations(tmp_path)]
    assert max(scores[1:]) > 40 and losses(tmp_path)[-1] < 0.5 * losses(tmp_path)[0]


@pytest.mark.parametrize("how", ["path", "auto"])
def test_resume_ends_where_an_unbroken_run_does(how, tool, tiny_config_file, tmp_path):
    config = derive(
        tiny_config_file,  # dropout and flips would draw other numbers after the break
        """
model = dict(decode_head=dict(dropout_ratio=0), auxiliary_head=dict(dropout_ratio=0))
train_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
""",
    )
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    assert tool("train", config, "--work-dir", unbroken).code == 0
    checkpoint = unbroken / "iter_4.pth"
    if how == "auto":  # as if the run had been cut off after its first checkpoint
        resumed.mkdir()
        checkpoint.rename(resumed / checkpoint.name)
        (resumed / "last_checkpoint").write_text(str(resumed / checkpoint.name))
        checkpoint = "auto"
    assert tool("train", config, "--work-dir", resumed, "--resume", checkpoint).code == 0
    assert [line["iter"] for line in history(resumed)] == [6]
    assert history(resumed)[-1] == history(unbroken)[-1]
    assert same_metrics(validations(resumed)[-1], validations(unbroken)[-1])


def test_resume_in_place_cuts_the_history(tool, tiny_config_file, trained):
    before = history(trained)
    (trained / "last_checkpoint").write_text(str(trained / "iter_4.pth"))
    assert tool("train", tiny_config_file, "--work-dir", trained, "--resume").code == 0
    assert [line["iter"] for line in history(trained)] == [0, 2, 4, 6]
    assert history(trained)[:3] == before[:3]


def test_resume_auto_without_checkpoint_starts_anew(tool, tiny_config_file, tmp_path):
    assert tool("train", tiny_config_file, "--work-dir", tmp_path / "new", "--resume").code == 0
    assert len(history(tmp_path / "new")) == 4


def losses(work_dir: Path) -> list[float]:
    log = max(work_dir.glob("*/vis_data/scalars.json"))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_amp_computes_in_lower_precision(tool, tiny_config_file, trained, tmp_path):
    assert tool("train", tiny_config_file, "--work-dir", tmp_path / "amp", "--amp").code == 0
    wrapper = Config.fromfile(tmp_path / "amp" / "tiny.py").optim_wrapper.type
    assert wrapper == ("AmpOptimWrapper" if torch.cuda.is_available() else "CPUAmpOptimWrapper")
    low, full = losses(tmp_path / "amp"), losses(trained)
    assert low != full
    assert low == pytest.approx(full, rel=0.1)


def test_sync_bn_becomes_bn_in_one_process(tool, tiny_config_file, tmp_path):
    norms = [f"model.{head}.norm_cfg.type=SyncBN" for head in ("decode_head", "auxiliary_head")]
    done = tool("train", tiny_config_file, "--work-dir", tmp_path, "--cfg-options", *norms)
    assert done.code == 0
    assert "SyncBN" not in (tmp_path / "tiny.py").read_text()


def test_epoch_based_loop_reallocates_each_epoch(tool, tiny_config_file, tmp_path):
    config = derive(
        tiny_config_file,
        """
train_cfg = dict(_delete_=True, type="EpochBasedTrainLoop", max_epochs=4, val_interval=2)
train_dataloader = dict(sampler=dict(type="DefaultSampler"))
log_processor = dict(by_epoch=True)
default_hooks = dict(checkpoint=dict(by_epoch=True, interval=4))
custom_hooks = [dict(type="SparsityAllocationHook", target_sparsity=0.5)]
""",
    )
    assert tool("train", config, "--work-dir", tmp_path / "run").code == 0
    lines = history(tmp_path / "run")
    assert [(line["epoch"], line["iter"]) for line in lines] == [(0, 0), (1, 2), (2, 4), (3, 6)]
    assert lines[-1]["budget"] == TOTAL // 2
    assert (tmp_path / "run" / "epoch_4.pth").is_file()


def test_gradient_accumulation(tool, tiny_config_file, tmp_path):
    option = "optim_wrapper.accumulative_counts=2"
    done = tool("train", tiny_config_file, "--work-dir", tmp_path, "--cfg-options", option)
    assert done.code == 0
    assert history(tmp_path)[-1]["budget"] == TOTAL // 2
    assert all(score > 0 for score in history(tmp_path)[1]["score"].values())


def read_maps(folder: Path, names) -> np.ndarray:
    return np.stack([cv2.imread(str(folder / name), cv2.IMREAD_UNCHANGED) for name in names])


def test_out_writes_the_maps_that_were_scored(
    tool, tiny_config_file, trained, tmp_path, tiny_dataset
):
    checkpoint, test_dir = trained / "iter_8.pth", tmp_path / "test"
    options = ("--work-dir", test_dir, "--out", tmp_path / "maps")
    assert tool("test", tiny_config_file, checkpoint, *options).code == 0
    labels = read_maps(tiny_dataset / "annotations/validation", ["0.png", "1.png"])
    maps = read_maps(tmp_path / "maps", ["0.png", "1.png"])
    right = (maps == labels)[labels > 0].mean()  # mmseg counts from 1 where it reduced labels
    assert scores_of(test_dir)["aAcc"] == pytest.approx(100 * right, abs=0.006)


def test_show_dir_paints_every_image(tool, tiny_config_file, trained, tmp_path):
    options = ("--work-dir", tmp_path / "test", "--show-dir", tmp_path / "painted")
    assert tool("test", tiny_config_file, trained / "iter_8.pth", *options).code == 0
    assert len(list((tmp_path / "painted").rglob("*.png"))) == 2


def test_tta_averages_over_its_views(tool, tiny_config_file, trained, tmp_path):
    checkpoint = trained / "iter_8.pth"
    flipped = tool("test", tiny_config_file, checkpoint, "--tta", "--work-dir", tmp_path / "flip")
    assert flipped.code == 0
    config = tiny_config_file.with_name("one_view.py")
    config.write_text(tiny_config_file.read_text().replace("(0.0, 1.0)", "(0.0,)"))
    one_view = tool("test", config, checkpoint, "--tta", "--work-dir", tmp_path / "one")
    assert one_view.code == 0
    assert same_metrics(scores_of(tmp_path / "one"), validations(trained)[-1])
    assert not same_metrics(scores_of(tmp_path / "flip"), scores_of(tmp_path / "one"))


RANK_STATE = """
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class SaveRankState(Hook):
    def after_train(self, runner):
        path = f"{runner.work_dir}/rank{get_rank()}.pth"
        model = getattr(runner.model, "module", runner.model)
        torch.save(model.backbone.state_dict(), path)
"""


def train_in(processes: int, config: Path, work_dir: Path) -> list[dict]:
    """Train a config that imports ``rank_state`` under gloo; return the backbone of each rank."""
    (config.parent / "rank_state.py").write_text(RANK_STATE)
    path = f"{config.parent}{os.pathsep}{ROOT}"
    launch = ("-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone")
    train = (ROOT / "tools/train.py", config, "--work-dir", work_dir, "--launcher", "pytorch")
    done = run(*launch, *train, PYTHONPATH=path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0
    return [torch.load(work_dir / f"rank{rank}.pth") for rank in range(processes)]


def test_two_processes_stay_equal(tiny_config_file, tmp_path):
    config = derive(
        tiny_config_file,
        """
custom_imports = dict(imports=["snella_seg.register", "rank_state"])
custom_hooks = [
    dict(type="SparsityAllocationHook", target_sparsity=0.5),
    dict(type="SaveRankState"),
]
train_cfg = dict(max_iters=4)
model = dict(decode_head=dict(norm_cfg=dict(type="SyncBN")))
""",
    )
    first, second = train_in(2, config, tmp_path / "run")
    assert all(torch.equal(value, second[name]) for name, value in first.items())

    lines = history(tmp_path / "run")  # 4 images, 2 processes with 2 images each: 1 is an epoch
    assert [line["iter"] for line in lines] == [0, 1, 2, 3]
    assert all(sum(line["nonzero"].values()) == line["budget"] for line in lines)
    saved = torch.load(tmp_path / "run" / "iter_4.pth", weights_only=False)["state_dict"]
    for matrix, sparsity in lines[-1]["sparsity"].items():
        name = sparsity_name(matrix)
        assert first[name.removeprefix("backbone.")].item() == saved[name].item() == sparsity


ONE_BATCH = """
custom_imports = dict(imports=["snella_seg.register", "rank_state"])
custom_hooks = [
    dict(type="SparsityAllocationHook", target_sparsity=0.5),
    dict(type="SaveRankState"),
]
train_cfg = dict(max_iters=8)
norm = dict(norm_cfg=dict(_delete_=True, type="GN", num_groups=4), dropout_ratio=0)
model = dict(decode_head=norm, auxiliary_head=norm)
train_dataloader = dict(batch_size=BATCH_SIZE, dataset=dict(pipeline={{_base_.test_pipeline}}))
"""
#: Sparse from the start, so that gradients wait within a step.
MICRO_BATCHES = """
model["backbone"] = dict(adapter=dict(initial_sparsity=0.7))
custom_hooks[0].update(target_sparsity=0.8)
optim_wrapper = dict(accumulative_counts=2)
"""


@pytest.mark.skipif("SNELLA_PROCESSES" not in os.environ, reason="SNELLA_PROCESSES='2 4' runs it")
@pytest.mark.parametrize("processes", os.environ.get("SNELLA_PROCESSES", "4").split())
@pytest.mark.parametrize("more", ["", MICRO_BATCHES], ids=["each_steps", "micro_batches"])
def test_processes_that_share_a_batch_train_as_one(processes, more, tiny_config_file, tmp_path):
    found = {}
    for count in (1, int(processes)):  # four images in all, whatever their number
        text = ONE_BATCH.replace("BATCH_SIZE", str(4 // count)) + more
        config = derive(tiny_config_file, text)
        found[count] = train_in(count, config, tmp_path / f"of_{count}")
    (alone,), (first, *others) = found.values()
    assert all(torch.equal(v, rank[name]) for rank in others for name, v in first.items())
    alone_lines, lines = (history(tmp_path / f"of_{count}") for count in found)
    assert [line["iter"] for line in lines] == list(range(8))
    assert [line["sparsity"] for line in lines] == [line["sparsity"] for line in alone_lines]
    far = max((alone[name] - value).abs().max().item() for name, value in first.items())
    print(f"{processes} processes: weights within {far:.1e} of those of one")
    assert far < 1e-4  # of steps of 1e-2


def test_compiled_training_is_the_same(tiny_config_file, tmp_path):
    found = []
    for name, options in (
        ("plain", ()),
        ("compiled", ("--cfg-options", "compile.backend=aot_eager")),
    ):
        train = (ROOT / "tools/train.py", tiny_config_file, "--work-dir", tmp_path / name)
        done = run(*train, *options)
        assert done.returncode == 0
        losses = [float(loss) for loss in re.findall(r" loss: ([0-9.]+)", done.stdout)]
        found.append((losses, [line["budget"] for line in history(tmp_path / name)]))
    assert len(found[0][0]) == 4 and found[0][1] == found[1][1]
    assert found[0][0] == pytest.approx(found[1][0], abs=2e-3)
