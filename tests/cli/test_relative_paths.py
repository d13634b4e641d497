"""Relative paths in a config mean the same wherever a tool is called from."""

import shutil

import pytest
import torch
from helpers import scores_of
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from snella_seg.configs import find_files, load_config


@pytest.fixture
def project(tiny_config_file, tiny_dataset, tmp_path, tool, monkeypatch):
    """A folder with data, base weights, a config that names both by relative paths, and a run."""
    folder = tmp_path / "project"
    (folder / "configs").mkdir(parents=True)
    shutil.copytree(tiny_dataset, folder / "data")
    config = Config.fromfile(tiny_config_file)
    init_default_scope("mmseg")
    torch.save(MODELS.build(config.model.backbone.backbone).state_dict(), folder / "base.pth")
    text = tiny_config_file.read_text().replace(tiny_dataset.as_posix(), "data")
    (folder / "configs/own.py").write_text(
        text.replace("adapter=dict(rank=4),", "adapter=dict(rank=4), base_checkpoint='base.pth',")
    )
    monkeypatch.chdir(folder)
    assert tool("train", "configs/own.py", "--work-dir", "run").code == 0
    return folder


def test_tools_work_from_another_folder(project, tool, tmp_path, monkeypatch):
    own, checkpoint = project / "configs/own.py", project / "run/iter_8.pth"
    assert tool("report", "run", "--out", tmp_path / "at home").code == 0
    shipped = project / "ship/shipped.safetensors"
    assert tool("export_adapter", own, checkpoint, shipped).code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name, *args in (
        ("preflight", own),
        ("test", own, checkpoint, "--work-dir", "tested"),
        ("test", project / "run/own.py", checkpoint, "--work-dir", "dumped"),
        ("export_adapter", own, checkpoint, "task.safetensors"),
        ("segment", project / "data/images/validation/0.jpg", "task.safetensors", shipped),
        ("export_delta", own, checkpoint, "delta.safetensors"),
        ("merge", own, checkpoint, "merged"),
        ("test", "merged/merged.py", "merged/merged.pth", "--work-dir", "stock"),
        ("report", project / "run"),
        ("train", own, "--work-dir", "again"),
    ):
        ended = tool(name, *args)
        assert ended.code == 0, f"{name}: {ended.err[-600:]}"
    scores = [scores_of(tmp_path / "elsewhere" / name)["mIoU"] for name in ("tested", "dumped")]
    assert scores[0] == scores[1]
    pages = [tmp_path / "at home/report.md", project / "run/report/report.md"]
    assert pages[0].read_text() == pages[1].read_text()


def test_what_is_found_from_here_stays(tmp_path, monkeypatch):
    for folder in ("here", "config"):
        (tmp_path / folder / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    config = dict(dataset=dict(data_root="data"), load_from="nowhere.pth")
    find_files(config, tmp_path / "config")
    assert config == dict(dataset=dict(data_root="data"), load_from="nowhere.pth")
    monkeypatch.chdir(tmp_path)
    find_files(config, tmp_path / "config")
    assert config["dataset"]["data_root"] == str(tmp_path / "config/data")


def test_paths_are_looked_for_above_the_config(tmp_path, monkeypatch):
    (tmp_path / "configs/own").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    path = tmp_path / "configs/own/c.py"
    path.write_text(
        "model = dict(type='EncoderDecoder')\n"
        "train_dataloader = dict(dataset=dict(data_root='data'))\n"
    )
    monkeypatch.chdir(tmp_path / "configs")
    assert load_config(path).train_dataloader.dataset.data_root == str(tmp_path / "data")
