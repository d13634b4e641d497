"""Forgetting: the source's head on its own task, before and after its backbone was adapted."""

import json
from pathlib import Path

import pytest
from helpers import run_tool, write_tiny_config
from mmengine.config import Config

import snella_seg.register  # noqa: F401
from snella_seg.lab.compare import source_config
from snella_seg.lab.compare.forgetting import score_source


@pytest.fixture(scope="module")
def stock_run(tiny_dataset, tmp_path_factory) -> tuple[Config, str, float]:
    """A config whose backbone comes from a segmentor that was trained; its file and its mIoU."""
    tmp_path = tmp_path_factory.mktemp("source")
    cfg = Config.fromfile(write_tiny_config(tmp_path, tiny_dataset))
    stock = Config(cfg.to_dict())
    stock.model.backbone, stock.custom_hooks = stock.model.backbone.backbone, []
    stock.dump(tmp_path / "stock.py")
    assert run_tool("train", tmp_path / "stock.py", "--work-dir", tmp_path / "stock") == 0
    checkpoint = str(tmp_path / "stock/iter_8.pth")
    lines = next((tmp_path / "stock").glob("*/vis_data/scalars.json")).read_text().splitlines()
    cfg.model.backbone.init_cfg = dict(type="Pretrained", checkpoint=checkpoint)
    return cfg, checkpoint, [json.loads(x)["mIoU"] for x in lines if "mIoU" in x][-1]


@pytest.fixture
def task(stock_run) -> tuple[Config, str, float]:
    cfg, *rest = stock_run
    return Config(cfg.to_dict()), *rest


def test_what_a_comparison_says_of_forgetting(task, tool, tmp_path):
    cfg, checkpoint, before = task
    cfg.source = dict(checkpoint=checkpoint)
    cfg.dump(tmp_path / "night.py")
    options = ("--methods", "frozen", "snella_v2", "full", "--seeds", "1", "--cost-rounds", "0")
    study = ("compare", tmp_path / "night.py", "--work-dir", tmp_path / "study", *options)
    done = tool(*study, "--lr", "full=1e-2")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "study/study.json").read_text())
    assert found["source"] == {"checkpoint": checkpoint, "mIoU": before}
    forgetting = {row["method"]: row["forgetting"] for row in found["runs"]}
    assert forgetting["frozen"] == 0 != forgetting["full"]
    for row in found["runs"]:
        assert row["forgetting"] == pytest.approx(before - row["source_mIoU"], abs=0.006)
    table = (tmp_path / "study/report.md").read_text().split("## Scores")[1].splitlines()
    header, full = (next(x for x in table if x.startswith(f"| {n}")) for n in ("method", "full"))
    column = [cell.strip() for cell in header.split("|")].index("forgetting")
    assert full.split("|")[column].strip() == f"{forgetting['full']:.2f}"

    # scores are kept with the runs, for as long as the source is the same
    for path in (tmp_path / "study/runs").glob("*/iter_8.pth"):
        path.unlink()
    done = tool(*study, "--lr", "full=1e-2")
    assert done.code == 0 and json.loads((tmp_path / "study/study.json").read_text()) == found


def test_the_source_may_have_a_config_of_its_own(task):
    cfg, checkpoint, before = task
    cfg.source = dict(checkpoint=checkpoint, config=str(Path(checkpoint).parents[1] / "stock.py"))
    assert score_source(source_config(cfg)) == before
    cfg.source.options = dict(val_dataloader=dict(dataset=dict(data_root="elsewhere")))
    assert source_config(cfg).val_dataloader.dataset.data_root == "elsewhere"
    cfg.source.checkpoint = "none.pth"
    with pytest.raises(FileNotFoundError, match="source.checkpoint"):
        source_config(cfg)


@pytest.mark.parametrize("source", ["day.pth", dict(config="x.py"), dict(checkpoint="x", head=1)])
def test_a_source_that_is_not_one(tiny_config_file, source):
    cfg = Config.fromfile(tiny_config_file)
    assert source_config(cfg) is None
    cfg.source = source
    with pytest.raises(ValueError, match="source must be dict"):
        source_config(cfg)
