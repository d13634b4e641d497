"""``snella-seg doctor``."""

import torch

from snella_seg.cli import doctor
from snella_seg.engine import tiles
from snella_seg.engine.self_check import native_reason
from snella_seg.functional import DeltaRule

DISTANCES = (DeltaRule(), DeltaRule("centred", "normalised"))


def test_a_table_to_paste(tool):
    done = tool("doctor")
    assert done.code == 0, done.err
    lines = done.out.strip().splitlines()
    assert lines[:2] == ["| what | found |", "|---|---|"]
    assert all(line.count("|") == 3 for line in lines[2:])
    makers = [native_reason(rule) is None and "native" or "tiles" for rule in DISTANCES]
    for name, maker in zip(("snella", "snella_v2", "lora"), (*makers, "tiles"), strict=True):
        assert f"| {name} on cpu | {maker}, as defined |" in lines
    assert "| distance kernels on cpu | " in done.out
    assert "torch " in done.out and "snella_seg " in done.out


def test_tiles_are_for_gpus(tool):
    done = tool("doctor", "--tune")
    assert done.code == 0, done.err
    found = "nothing to choose: no GPU" if not torch.cuda.is_available() else "64x32"
    assert f"| {found}" in done.out


def test_what_differs_ends_in_status_1(tool, monkeypatch):
    def another_size(*args, **options):
        return write(*args[:-1], args[-1] * 1.01)

    monkeypatch.setenv("SNELLA_NATIVE", "0")
    write = tiles.write_rows
    monkeypatch.setattr(tiles, "write_rows", another_size)
    done = tool("doctor")
    assert done.code == 1
    assert "| snella_v2 on cpu | FAILED: tiles: the delta is off by" in done.out


def test_tests_outside_of_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "snella_seg/cli/doctor.py"))
    what, found, right = doctor.run_tests()
    assert not right and "run doctor in a checkout" in found
