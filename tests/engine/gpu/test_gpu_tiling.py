"""Tiles are chosen once, by ``snella-seg doctor --tune``, and taken by later processes."""

import json

import pytest
import torch

from snella_seg.cli import tile_tuning
from snella_seg.cli.tile_tuning import tune
from snella_seg.engine import gpu as fast
from snella_seg.engine.gpu import tiling as tiles
from snella_seg.engine.gpu.tiling import CHOICES, Tile, Tiling, trying
from snella_seg.functional import DeltaRule

GPU = torch.device("cuda", 0)
V2 = DeltaRule("centred", "normalised")
BEST = Tiling(CHOICES["entries"][2], CHOICES["factors"][1])


@pytest.fixture(autouse=True)
def a_gpu_and_a_cache(tmp_path, monkeypatch):
    """Of a name; nothing is asked of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    if tiles.triton is None:
        pytest.skip("needs Triton")
    tiles._chosen.cache_clear()
    yield
    tiles._chosen.cache_clear()


def in_tiles(device, rule):
    """Milliseconds that a step would take."""
    now = tiles.tiles_for(device, "centred")
    if now.factors == CHOICES["factors"][2]:
        raise RuntimeError("out of resource: shared memory")
    return 3.0 - (now.entries == BEST.entries) - (now.factors == BEST.factors)


def test_the_fastest_are_taken_from_then_on():
    assert fast.tiles_for(GPU, "centred") == Tiling()
    line = tune(GPU, V2, in_tiles)
    assert line.startswith(f"{BEST} (entries 64x32/4 3.000 ms, ")
    assert "factors 32x64/8 RuntimeError" in line
    assert fast.tiles_for(GPU, "centred") == BEST
    assert fast.tiles_for(GPU, "mixed") == Tiling()  # another kind of kernel
    tune(GPU, DeltaRule(), lambda *_: 1.0)
    assert fast.tiles_for(GPU, "centred") == BEST and fast.tiles_for(GPU, "mixed") == Tiling()
    assert len(json.loads(tiles.tiles_file().read_text())) == 2
    assert [path.name for path in tiles.tiles_file().parent.iterdir()] == ["tiles.json"]
    assert fast.tiles_for(torch.device("cpu"), "centred") == Tiling()


def test_a_little_faster_is_not_enough():
    times = iter([1.0, 0.99, 0.98, 0.98] * 2)
    assert tune(GPU, V2, lambda *_: next(times)).startswith(f"{Tiling()} (")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"KEY": 3}',
        '{"KEY": {"entries": {"outs": 64, "ins": 32, "warps": 4}}}',
        '{"KEY": {"entries": {"outs": 7, "ins": 32, "warps": 4}, '
        '"factors": {"outs": 64, "ins": 32, "warps": 8}}}',
    ],
)
def test_what_cannot_be_read_is_as_none(content):
    path = tiles.tiles_file()
    path.parent.mkdir(parents=True)
    path.write_text(content.replace("KEY", tiles.tiling_key(GPU, "centred")))
    assert fast.tiles_for(GPU, "centred") == Tiling()
    tune(GPU, V2, in_tiles)
    assert fast.tiles_for(GPU, "centred") == BEST


def test_what_is_timed_runs(device, monkeypatch):
    monkeypatch.setattr(tile_tuning, "SHAPE", (33, 17))
    runs = []

    def stopwatch(step, return_mode):
        runs.append(step())
        return 0.5

    monkeypatch.setattr(tiles.triton.testing, "do_bench_cudagraph", stopwatch)
    assert tile_tuning.step_time(device, V2) == 0.5 and len(runs) == 1


@pytest.mark.parametrize("name", CHOICES)
def test_the_same_deltas_in_every_tile(name, device):
    """But for the last digits of sums."""
    generator = torch.Generator().manual_seed(0)
    params = tuple(torch.randn(2, n, 5, generator=generator).to(device) for n in (70, 90))
    grad = torch.randn(90, 70, generator=generator).to(device)

    def run(tile):
        with trying(Tiling(**{name: tile})):
            delta, state = fast.launch_delta(params, V2, 0.7)
            return [delta, *fast.launch_backward(params, V2, state, grad)]

    first, *others = (run(tile) for tile in CHOICES[name])
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert (a - b).abs().max() <= 1e-5 * a.abs().max()


def test_the_defaults_are_among_the_choices():
    assert all(isinstance(tile, Tile) for each in CHOICES.values() for tile in each)
    assert [getattr(Tiling(), name) for name in CHOICES] == [each[0] for each in CHOICES.values()]
