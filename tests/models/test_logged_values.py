"""Checkpoints of mmengine under torch's safe loading, which the originals of it know nothing of."""

import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from snella_seg.models.inference import allow_logged_values

if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
    pytest.skip("torch < 2.6 loads anything", allow_module_level=True)


@pytest.fixture(autouse=True)
def allowed():
    """Some builds of mmengine take back, after each load, what they and others allowed."""
    allow_logged_values()


class Getattr:
    """Pickled as ``getattr(owner, name)``."""

    def __init__(self, *args) -> None:
        self.args = args

    def __reduce__(self):
        return getattr, self.args


def test_logged_values_load(tmp_path):
    buffer = HistoryBuffer([1.0, 3.0], [1, 1])
    torch.save(dict(loss=buffer, lr=np.float64(0.1), steps=np.arange(2)), tmp_path / "a.pth")
    loaded = torch.load(tmp_path / "a.pth", weights_only=True)
    assert loaded["loss"].mean() == 2.0 and loaded["lr"] == 0.1
    assert loaded["loss"].statistics("max") == 3.0
    assert loaded["steps"].tolist() == [0, 1]


@pytest.mark.parametrize(("owner", "name"), [(np.ndarray, "tofile"), (HistoryBuffer, "__init__")])
def test_nothing_else_is_looked_up(owner, name, tmp_path):
    torch.save(Getattr(owner, name), tmp_path / "a.pth")
    with pytest.raises((pickle.UnpicklingError, ValueError), match=name):
        torch.load(tmp_path / "a.pth", weights_only=True)
