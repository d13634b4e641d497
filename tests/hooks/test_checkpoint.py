"""SnellaCheckpointHook: what is left out comes back, from the right base only; nothing is lost."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers import ROOT, run_tool, save_base, write_tiny_config
from mmengine.config import Config
from mmengine.fileio import get_file_backend
from mmengine.registry import init_default_scope
from mmseg.apis import init_model
from mmseg.registry import MODELS

import snella_seg.register  # noqa: F401
from snella_seg.hooks import SnellaCheckpointHook
from snella_seg.loading import CheckpointError, latest_checkpoint
from snella_seg.loading.files import ATOMIC, atomic_write
from snella_seg.loading.header import HEADER


def write_config(folder: Path, tiny: Path) -> Path:
    """The tiny config with a base of its own and slim checkpoints."""
    base = save_base(tiny, folder / "base.pth")
    path = folder / "slim.py"
    path.write_text(
        f"_base_ = '{tiny}'\n"
        f"model = dict(backbone=dict(base_checkpoint='{base}'))\n"
        "default_hooks = dict(checkpoint=dict(type='SnellaCheckpointHook'))\n"
    )
    return path


@pytest.fixture
def config(tiny_config_file, tmp_path) -> Path:
    return write_config(tmp_path, tiny_config_file)


def read(path: Path) -> dict:
    return torch.load(path, weights_only=False)


def frozen_in(state: dict) -> list[str]:
    task = (".adapters.", "cls_token", HEADER)
    return [k for k in state if k.startswith("backbone.") and not any(t in k for t in task)]


class Runs(NamedTuple):
    """The same run twice, with slim and with whole checkpoints."""

    config: Path
    slim: Path
    whole: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_dataset) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    config = write_config(folder, write_tiny_config(folder, tiny_dataset))
    option = ("--cfg-options", "default_hooks.checkpoint.slim=False")
    assert run_tool("train", config, "--work-dir", folder / "slim") == 0
    assert run_tool("train", config, "--work-dir", folder / "whole", *option) == 0
    return Runs(config, folder / "slim", folder / "whole")


@pytest.fixture
def runs(trained, tmp_path) -> Runs:
    """A copy that a test may change; the base stays where the config and the checkpoints say."""
    return Runs(
        trained.config,
        shutil.copytree(trained.slim, tmp_path / "slim"),
        shutil.copytree(trained.whole, tmp_path / "whole"),
    )


def test_only_the_frozen_base_is_left_out(trained):
    slim, whole = (read(folder / "iter_8.pth") for folder in (trained.slim, trained.whole))
    assert not frozen_in(slim["state_dict"]) and len(frozen_in(whole["state_dict"])) == 27
    kept = {k: v for k, v in slim["state_dict"].items() if not k.endswith(HEADER)}
    assert all(torch.equal(v, whole["state_dict"][k]) for k, v in kept.items())
    assert len(kept) + 27 == len(whole["state_dict"])
    trained = len(slim["optimizer"]["state"])
    assert trained == sum(len(g["params"]) for g in slim["optimizer"]["param_groups"])


def test_tools_take_both_kinds_and_say_the_same(tool, trained, tmp_path):
    import mmseg

    lines, config = [], trained.config
    for folder in (trained.slim, trained.whole):
        done = tool("test", config, folder / "iter_8.pth", "--work-dir", tmp_path / "test")
        assert done.code == 0
        lines.append(done.out.rpartition("aAcc: ")[2].partition("data_time")[0])
    assert lines[0] == lines[1] and "mIoU" in lines[0]
    stock = Path(mmseg.__file__).parent / ".mim" / "tools" / "test.py"
    command = [stock, config, trained.slim / "iter_8.pth", "--work-dir", tmp_path / "stock"]
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rpartition("aAcc: ")[2].partition("data_time")[0] == lines[0]
    assert "missing keys" not in done.stdout


def test_init_model_finds_the_base(trained):
    config = trained.config
    cfg = Config.fromfile(config)
    expected = init_model(cfg, str(trained.whole / "iter_8.pth"), device="cpu").state_dict()
    inner = dict(type="Pretrained", checkpoint=cfg.model.backbone.base_checkpoint)
    for place in ("base_checkpoint", "init_cfg", "pretrained", "nowhere"):
        cfg = Config.fromfile(config)
        cfg.model.backbone.base_checkpoint = None
        if place == "base_checkpoint":
            cfg.model.backbone.base_checkpoint = inner["checkpoint"]
        elif place == "init_cfg":  # which init_model takes away
            cfg.model.backbone.init_cfg = inner
        elif place == "pretrained":
            cfg.model.pretrained = inner["checkpoint"]
        found = init_model(cfg, str(trained.slim / "iter_8.pth"), device="cpu").state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in found.items()), place


def test_another_base_or_none_is_refused(tool, trained, tmp_path):
    config, checkpoint = trained.config, trained.slim / "iter_8.pth"
    other = save_base(config, tmp_path / "other.pth", seed=2)
    option = f"model.backbone.base_checkpoint={other}"
    test = ("test", config, checkpoint, "--work-dir", tmp_path / "test")
    done = tool(*test, "--cfg-options", option)
    assert done.code == 1 and "trained on another base" in done.err and "base.pth" in done.err
    resumed = ("train", config, "--work-dir", tmp_path / "run2", "--resume", checkpoint)
    done = tool(*resumed, "--cfg-options", option)
    assert done.code == 1 and "trained on another base" in done.err
    done = tool(*test, "--cfg-options", option, "model.backbone.check_base=False")
    assert done.code == 0 and "loaded all the same (check_base=False)" in done.out
    done = tool(*test, "--cfg-options", f"model.backbone.base_checkpoint={tmp_path / 'none.pth'}")
    assert done.code == 1
    assert "leaves out the frozen base" in done.err and "base_checkpoint" in done.err


def test_a_base_of_no_known_file_is_kept(tool, tiny_config_file, tmp_path):
    options = ("default_hooks.checkpoint.type=SnellaCheckpointHook", "train_cfg.max_iters=4")
    done = tool("train", tiny_config_file, "--work-dir", tmp_path, "--cfg-options", *options)
    assert done.code == 0
    assert done.out.count("checkpoints hold the frozen base, since it came from no file") == 1
    assert len(frozen_in(read(tmp_path / "iter_4.pth")["state_dict"])) == 27


def test_a_base_that_a_checkpoint_replaced_is_kept(tool, config, tiny_config_file, tmp_path):
    """``load_from`` may bring another base than ``init_cfg``: then its file no longer serves."""
    options = ("default_hooks.checkpoint.type=SnellaCheckpointHook", "train_cfg.max_iters=4")
    tool("train", tiny_config_file, "--work-dir", tmp_path / "a", "--cfg-options", *options)
    start = f"load_from={tmp_path / 'a' / 'iter_4.pth'}"
    done = tool("train", config, "--work-dir", tmp_path / "b", "--cfg-options", options[1], start)
    assert done.code == 0, done.err
    found = read(tmp_path / "b" / "iter_4.pth")["state_dict"]
    expected = read(tmp_path / "a" / "iter_4.pth")["state_dict"]
    assert len(frozen_in(found)) == 27
    assert all(torch.equal(found[k], expected[k]) for k in frozen_in(found))


@pytest.mark.parametrize("damage", ["bytes", "version", "newer"])
def test_a_damaged_header_is_refused(trained, tmp_path, damage):
    checkpoint = read(trained.slim / "iter_8.pth")
    name = f"backbone.{HEADER}"
    text = bytes(checkpoint["state_dict"][name].tolist())
    new = {
        "bytes": text[:-9],
        "version": text.replace(b'"version": 1', b'"versoin": 1'),
        "newer": text.replace(b'"version": 1', b'"version": 2'),
    }[damage]
    checkpoint["state_dict"][name] = torch.tensor(list(new), dtype=torch.uint8)
    torch.save(checkpoint, tmp_path / "spoilt.pth")
    words = "format version 2.*update snella_seg" if damage == "newer" else "cannot be read"
    with pytest.raises(CheckpointError, match=words):
        init_model(str(trained.config), str(tmp_path / "spoilt.pth"), device="cpu")


def test_timm_backbones_are_slim_too(tmp_path):
    timm = pytest.importorskip("timm")
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=24, num_heads=2
    )
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    inner = dict(
        type="TIMMBackbone",
        model_name="vit_tiny_patch16_224",
        pretrained=True,  # would need the network; base_checkpoint goes before it
        img_size=32,
        depth=2,
        embed_dim=24,
        num_heads=2,
        out_indices=(0, 1),
    )
    source = str(tmp_path / "timm.pth")
    cfg = dict(type="SnellaBackbone", adapter=dict(rank=2), backbone=inner, base_checkpoint=source)
    init_default_scope("mmseg")
    trained = MODELS.build(Config(dict(model=cfg)).model)
    trained.init_weights()
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
    from snella_seg.artifacts import strip_frozen

    state = trained.state_dict()
    assert strip_frozen(state, trained)
    assert len(state) < len(trained.state_dict())
    fresh = MODELS.build(Config(dict(model=cfg)).model)
    fresh.load_state_dict(state)
    assert all(torch.equal(v, trained.state_dict()[k]) for k, v in fresh.state_dict().items())


def test_runs_with_averaged_weights_resume(tool, config, tmp_path):
    """EMAHook keeps a second model in the checkpoint and swaps the two when it resumes."""
    ours = "dict(type='SparsityAllocationHook', target_sparsity=0.5, interval=2)"
    config.write_text(f"{config.read_text()}custom_hooks = [{ours}, dict(type='EMAHook')]\n")
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    assert tool("train", config, "--work-dir", unbroken).code == 0
    half = read(unbroken / "iter_4.pth")
    assert not frozen_in(half["state_dict"])
    averaged = {k.removeprefix("module."): v for k, v in half["ema_state_dict"].items()}
    assert not frozen_in(averaged) and len(averaged) == len(half["state_dict"]) + 1  # its steps
    done = tool("train", config, "--work-dir", resumed, "--resume", unbroken / "iter_4.pth")
    assert done.code == 0, done.err
    for kind in ("state_dict", "ema_state_dict"):
        found, expected = (read(d / "iter_8.pth")[kind] for d in (resumed, unbroken))
        assert all(torch.equal(v, found[k]) for k, v in expected.items()), kind


def test_a_finite_sampler_in_an_iteration_loop_resumes_exactly(tool, config, tmp_path):
    """mmengine cannot skip by such a sampler and throws batches away instead."""
    options = (
        "--cfg-options",
        "train_dataloader.sampler.type=DefaultSampler",
        "train_cfg.max_iters=4",
        "default_hooks.checkpoint.interval=3",
    )
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    assert tool("train", config, "--work-dir", unbroken, *options).code == 0
    resume = ("--resume", unbroken / "iter_3.pth")
    assert tool("train", config, "--work-dir", resumed, *resume, *options).code == 0
    found, expected = (read(d / "iter_4.pth")["state_dict"] for d in (resumed, unbroken))
    assert all(torch.equal(v, found[k]) for k, v in expected.items())


def test_epochs_of_another_length_begin_anew(tool, config, tmp_path):
    """Twice the batch size: the checkpoint's iterations say nothing of epochs of this run."""
    text = config.read_text()
    by_epoch = "'SnellaCheckpointHook', by_epoch=True, interval=1"
    config.write_text(
        text.replace("'SnellaCheckpointHook'", by_epoch)
        + "train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=3)\n"
        "train_dataloader = dict(sampler=dict(type='DefaultSampler'))\n"
        "custom_hooks = []\n"
    )
    assert tool("train", config, "--work-dir", tmp_path / "a").code == 0
    resume = ("--resume", tmp_path / "a" / "epoch_2.pth")
    options = ("--cfg-options", "train_dataloader.batch_size=4")
    done = tool("train", config, "--work-dir", tmp_path / "b", *resume, *options)
    assert done.code == 0, done.err
    assert "its epoch begins anew" in done.out
    assert read(tmp_path / "b" / "epoch_3.pth")["meta"]["iter"] == 4 + 1


# Whole or not at all


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.pth"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), atomic_write(path) as partial:
        partial.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file.pth"]
    get_file_backend(backend_args=dict(backend=ATOMIC)).put(b"new", path)
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["file.pth"]


def test_a_kill_while_writing_loses_nothing(tool, runs, monkeypatch):
    """The process dies within the write of iter_12: iter_8 and what points to it are whole."""
    config, slim = runs.config, runs.slim

    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    options = ("default_hooks.checkpoint.max_keep_ckpts=1", "train_cfg.max_iters=12")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("snella_seg.loading.files.os.replace", die)
        tool("train", config, "--work-dir", slim, "--resume", "--cfg-options", *options)
    assert latest_checkpoint(str(slim)).endswith("iter_8.pth")
    (slim / "iter_12.pth.partial99").write_text("half a checkpoint")  # had it been SIGKILL
    done = tool("train", config, "--work-dir", slim, "--resume", "--cfg-options", *options)
    assert done.code == 0 and "resumed epoch: 0, iter: 8" in done.out
    assert not list(slim.glob("*.partial*"))
    assert (slim / "last_checkpoint").read_text().endswith("iter_12.pth")


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    assert latest_checkpoint(str(tmp_path)) is None
    (tmp_path / "last_checkpoint").write_text("iter_2.pth")
    with pytest.raises(CheckpointError, match="no whole checkpoint is there to resume from"):
        latest_checkpoint(str(tmp_path))
    for i, name in enumerate(("iter_4.pth", "iter_8.pth", "iter_12.pth")):
        torch.save({}, tmp_path / name)
        os.utime(tmp_path / name, (i, i))
    (tmp_path / "iter_12.pth").write_bytes(b"PK cut short")
    pointer = tmp_path / "last_checkpoint"
    for text, expected in (
        (str(tmp_path / "iter_4.pth"), "iter_4.pth"),
        ("", "iter_8.pth"),  # the kill came between opening and writing it
        ("/elsewhere/iter_4.pth", "iter_4.pth"),  # the folder was moved
        (str(tmp_path / "iter_12.pth"), "iter_8.pth"),
    ):
        pointer.write_text(text)
        assert Path(latest_checkpoint(str(tmp_path))).name == expected


def test_old_checkpoints_go_after_the_new_one_is_there(tool, config, tmp_path, monkeypatch):
    seen = []
    original = SnellaCheckpointHook._save_checkpoint_with_step

    def watch(self, runner, step, meta):
        seen.append(sorted(p.name for p in tmp_path.glob("*.pth")))
        original(self, runner, step, meta)

    monkeypatch.setattr(SnellaCheckpointHook, "_save_checkpoint_with_step", watch)
    options = [f"default_hooks.checkpoint.{o}" for o in ("max_keep_ckpts=1", "interval=2")]
    done = tool("train", config, "--work-dir", tmp_path, "--cfg-options", *options)
    assert done.code == 0
    assert seen == [["base.pth", *([f"iter_{i}.pth"] if i else [])] for i in (0, 2, 4, 6)]
    assert sorted(p.name for p in tmp_path.glob("iter*.pth")) == ["iter_8.pth"]


def test_a_run_that_was_killed_ends_with_the_same_bits():
    """Three kinds of runs, each killed at a random moment, see tests/kill_and_resume.py."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "kill_and_resume.py"), "--kills", "3"],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("same bits") == 3 and "0 bad ends" in done.stdout
