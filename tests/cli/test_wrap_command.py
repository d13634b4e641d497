"""snella-seg wrap, the command: a config that trains, and mistakes in one line."""

import pytest
from helpers import history, refused
from mmengine.config import Config


@pytest.fixture
def stock_file(tiny_config_file):
    """The tiny config as mmseg would have it."""
    cfg = Config.fromfile(tiny_config_file)
    cfg.model.backbone = cfg.model.backbone.backbone
    cfg.optim_wrapper.pop("constructor")
    cfg.pop("custom_hooks")
    cfg.dump(tiny_config_file.with_name("stock.py"))
    return tiny_config_file.with_name("stock.py")


def test_a_wrapped_config_trains(tool, stock_file, tmp_path):
    out = tmp_path / "wrapped.py"
    done = tool("wrap", stock_file, out, "--adapter", "rank=4", "--target-sparsity", "0.5", "--bn")
    assert done.code == 0 and "12 matrices of 24,576 weights are adapted by" in done.out
    assert Config.fromfile(out).model.backbone.method == "snella_v2"
    assert tool("train", out, "--work-dir", tmp_path / "run").code == 0
    assert history(tmp_path / "run")[-1]["budget"] == 24576 // 2


def test_mistakes_end_in_a_line(tool, stock_file, tiny_config_file, tmp_path):
    out = tmp_path / "out.py"
    for arguments, said in {
        (stock_file, tmp_path / "out.yaml"): "out.yaml will be a .py file, name it so",
        (stock_file, stock_file): "stock.py is there already: give another name, or --force",
        (stock_file, out, "--adapter", "rank=3"): "the model cannot be built: rank must be a pos",
        ("mmseg::no/such.py", out): "no/such.py",
        (tmp_path / "none.py", out): "none.py",
        (tiny_config_file, out): "the config is wrapped already: inherit it and set",
    }.items():
        refused(tool("wrap", *arguments), said)
        assert not out.exists()
