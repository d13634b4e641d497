"""The look-up of what we use of the OpenMMLab packages (benchmarks/originals.py), on toys."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import originals  # noqa: E402

THEIRS = {
    "mmengine/__init__.py": "from .runner import *\n",
    "mmengine/runner/__init__.py": "from .runner import Runner as Runner\n",
    "mmengine/runner/runner.py": """
from torch.nn import Module


class Base:
    def __init__(self, size, *, depth=1):
        self.size = size

    @classmethod
    def load(cls, path): ...


class Runner(Base):
    def train(self, steps): ...


class Net(Module): ...
""",
    "mmcv/__init__.py": "",
    "mmseg/__init__.py": "",
    "mmseg/registry.py": """
from mmengine.runner.runner import Base

HOOKS = Base(1)


@HOOKS.register_module()
class Known: ...
""",
    "mmseg/.mim/configs/known.py": "",
}
FINE = """
from mmengine import Runner
from mmengine.runner.runner import Net
from mmseg.registry import HOOKS
import mmseg.registry


class Ours(Runner):
    def train(self):
        super().train(steps=self.size)
        self.own = mmseg.registry.HOOKS.load(path='mmengine.runner.runner:Net')


class OurNet(Net):
    def go(self):
        return self.anything_of_torch


def hook(runner):
    runner.train(steps=Runner(1, depth=2).anything)
"""


def audit(folder: Path, code: str, config: str = "") -> list[str]:
    ours = {"snella_seg/__init__.py": "", "snella_seg/code.py": code, "configs/config.py": config}
    files = {**THEIRS, **{f"ours/{name}": text for name, text in ours.items()}}
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return originals.audit(folder / "ours", folder)[1]


def test_what_is_there_is_found(tmp_path):
    config = "_base_ = stock('known.py')\nhook = dict(type='Known')\noptimizer = dict(type='AdamW')"
    assert audit(tmp_path, FINE, config) == []


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("from mmengine import Trainer", "no Trainer in mmengine"),
        ("import mmcv.cnn", "no cnn in mmcv"),
        (
            "def f():\n    from mmengine.runner.runner import Nut",
            "no Nut in mmengine.runner.runner",
        ),
        ("from mmengine import Runner\nRunner.save()", "no save in mmengine.runner.runner.Runner"),
        ("from mmengine import Runner\nRunner(1, width=2)", "no argument width of mmengine.Runner"),
        ("from mmseg.registry import HOOKS\nHOOKS.get", "no get in mmengine.runner.runner.Base"),
        ("def f(runner):\n    runner.test()", "no test in mmengine.runner.runner.Runner"),
        ("name = 'mmseg.registry:MODELS'", "no MODELS in mmseg.registry"),
        (FINE.replace("self.size", "self.scale"), "no scale in snella_seg.code.Ours"),
        (FINE.replace("super().train(", "super().fit("), "no fit in mmengine.runner.runner.Runner"),
    ],
)
def test_what_is_missing_is_named(code, what, tmp_path):
    found = audit(tmp_path, code)
    assert [line.partition(": ")[2] for line in found] == [what]
    assert found[0].startswith("snella_seg/code.py:")


@pytest.mark.parametrize("config", ["_base_ = stock('other.py')", "hook = dict(type='Other')"])
def test_missing_types_and_stock_configs_are_named(config, tmp_path):
    (line,) = audit(tmp_path, "", config)
    assert line.startswith("configs/config.py:1: ") and line.lower().endswith(("other", "other.py"))
