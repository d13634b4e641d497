"""The chain of domain shifts, by the commands of configs/README.md, on tiny folders."""

import re
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT, history, validations
from mmengine.config import Config, ConfigDict

ITERATIONS, SIDE = 6, 64


def commands() -> list[list[str]]:
    """The commands of the chain, with the last of a few iterations for that of 160k."""
    text = (ROOT / "configs" / "README.md").read_text().partition("## A chain of domain shifts")[2]
    block = re.search(r"```bash\n(.*?)```", text, re.DOTALL)[1]
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    return [[word.replace("iter_160000", f"iter_{ITERATIONS}") for word in line] for line in lines]


def write_pair(image: Path, labels: Path, seed: int) -> None:
    """Write an image of stripes, and the train id that each is of; 255 is no class."""
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(8, dtype=np.uint8), SIDE // 8)[:, None].repeat(2 * SIDE, 1)
    ids[:4] = 255
    pixels = 20 * ids[..., None] + rng.integers(0, 30, (*ids.shape, 3))
    for path, content in ((image, pixels.clip(0, 255).astype(np.uint8)), (labels, ids)):
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), content)


def write_datasets(data: Path) -> None:
    """GTA5, Cityscapes and ACDC as they are unpacked, with one or two images a split."""
    for i in (1, 2):
        name = f"{i:05}"
        write_pair(
            data / f"gta/images/{name}.png", data / f"gta/labels/{name}_labelTrainIds.png", i
        )
    for split, count in (("train", 2), ("val", 1)):
        for i in range(count):
            stem = f"{split}/aachen/aachen_{i:06}_000019"
            write_pair(
                data / f"cityscapes/leftImg8bit/{stem}_leftImg8bit.png",
                data / f"cityscapes/gtFine/{stem}_gtFine_labelTrainIds.png",
                10 + i,
            )
        for i, weather in enumerate(("fog", "night", "rain", "snow")):
            stem = f"{weather}/{split}/GOPR0001/GOPR0001_frame_{i:06}"
            write_pair(
                data / f"acdc/rgb_anon/{stem}_rgb_anon.png",
                data / f"acdc/gt/{stem}_gt_labelTrainIds.png",
                20 + i,
            )


#: Key -> what it is in a tiny config, wherever it stands.
TINY = dict(
    scale=(2 * SIDE, SIDE),
    crop_size=(SIDE, SIDE),
    size=(SIDE, SIDE),
    stride=(SIDE // 2, SIDE // 2),
    num_layers=[1, 1, 1, 1],
    embed_dims=8,
    channels=16,
    max_iters=ITERATIONS,
    val_interval=ITERATIONS,
    num_workers=0,
    persistent_workers=False,
)


def shrink(node) -> None:
    """Make a shipped config tiny in place: its keys stay, its numbers get small."""
    if isinstance(node, list):
        for one in node:
            shrink(one)
    elif isinstance(node, ConfigDict):
        for key, value in node.items():
            if key in TINY:
                node[key] = TINY[key]
            elif key == "in_channels" and isinstance(value, (list, tuple)):
                node[key] = [TINY["embed_dims"] * channels // value[0] for channels in value]
            else:
                shrink(value)


@pytest.fixture
def chain(tmp_path, monkeypatch) -> Path:
    """A folder with the data sets and tiny copies of the chain's configs, to work in."""
    write_datasets(tmp_path / "data")
    (tmp_path / "configs/shift").mkdir(parents=True)
    for path in (ROOT / "configs/shift").glob("*.py"):
        cfg = Config.fromfile(path)
        shrink(cfg._cfg_dict)
        cfg.default_hooks.checkpoint.interval = ITERATIONS
        cfg.param_scheduler = []
        cfg.model.backbone.pop("init_cfg", None)  # weights to download
        if "source" in cfg:
            cfg.load_from = cfg.source.replace("iter_160000", f"iter_{ITERATIONS}")
            cfg.model.backbone.base_checkpoint = cfg.load_from
        cfg.dump(tmp_path / "configs/shift" / path.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_chain_runs_by_its_commands(chain, tool):
    lines = commands()
    assert [line[0] for line in lines].count("snella-seg") == 4
    for program, *arguments in lines:
        if program == "snella-seg":
            done = tool(*arguments)
            assert done.code == 0, done.err
        elif program == "mkdir":
            Path(arguments[-1]).mkdir()
        else:
            assert program == "cp"
            shutil.copy(*arguments)
    runs = {path.name: path for path in (chain / "work_dirs").iterdir()}
    assert len(runs) == 3 and all(len(validations(run)) == 1 for run in runs.values())
    adapted = [run for name, run in runs.items() if name.startswith("snella_")]
    assert all(history(run) for run in adapted)

    source = _state(chain / "work_dirs/source_segformer_b5_gta" / f"iter_{ITERATIONS}.pth")
    merged = _state(chain / "pretrain/segformer_b5_cityscapes.pth")
    assert merged.keys() == source.keys()
    changed = {name for name in source if not torch.equal(source[name], merged[name])}
    encoder = {name for name in changed if name.startswith("backbone.")}
    assert encoder and all(re.search(r"attn\.(in|out)_proj|ffn\.layers", n) for n in encoder)
    head = "decode_head.fusion_conv.conv.weight"  # adapted from the source's, not from random ones
    assert 0 < (merged[head] - source[head]).abs().max() < 0.1 * source[head].abs().max()

    last = chain / "work_dirs/snella_segformer_b5_cityscapes_to_acdc" / f"iter_{ITERATIONS}.pth"
    slim = _state(last)
    assert (slim[head] - merged[head]).abs().max() < 0.1 * merged[head].abs().max()
    assert any("adapters" in name for name in slim)


def _state(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, map_location="cpu", weights_only=False)["state_dict"]
