"""A resumed run says when its deltas are not made as before: then its bits are others."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from snella_seg.engine.gpu import tiling
from snella_seg.engine.self_check import native_finding
from snella_seg.hooks import ExactResumeHook, exact_resume

OURS = "snella_cpu_deltas"


def start(checkpoint, iteration=3):
    """What a run says that goes on from a checkpoint."""
    said = {"info": [], "warning": []}
    logger = SimpleNamespace(**{name: lines.append for name, lines in said.items()})
    run = SimpleNamespace(model=nn.Linear(1, 1), iter=iteration, logger=logger)
    hook = ExactResumeHook()
    hook.after_load_checkpoint(run, checkpoint)
    hook._say_who_makes_deltas(run)
    return said


def test_on_a_cpu():
    now = native_finding()[0].partition(" (")[0]
    assert start({OURS: now})["warning"] == []
    (line,) = start({OURS: "something else"})["warning"]
    assert f"resumed with deltas made by {now}, before by something else" in line
    older = start({})["warning"]  # before there was a library
    assert len(older) == (now != "plain torch")
    assert start({OURS: "something else"}, iteration=0)["warning"] == []


@pytest.mark.skipif(tiling.triton is None, reason="needs Triton")
def test_on_a_gpu_tiles_count(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(exact_resume, "_device", lambda runner: torch.device("cuda", 0))
    monkeypatch.setattr(exact_resume.gpu, "available", lambda device: True)
    tiling._chosen.cache_clear()
    said = start({})
    assert said["warning"] == []
    (line,) = said["info"]
    assert "made by Triton in tiles of distance 64x32/4 and 32x32/8, centred" in line
    before = line.partition("made by ")[2]
    assert start({OURS: before})["warning"] == []
    best = tiling.Tiling(tiling.CHOICES["entries"][1], tiling.CHOICES["factors"][1])
    tiling.write_down(tiling.tiling_key(torch.device("cuda", 0), "centred"), best)
    (line,) = start({OURS: before})["warning"]
    assert "centred 32x64/4 and 64x32/8" in line and f"before by {before}" in line
    tiling._chosen.cache_clear()
    monkeypatch.setattr(exact_resume.gpu, "available", lambda device: False)
    assert "made by plain torch" in start({})["info"][0]
