"""Checkpoints that were damaged, or are none: refused in a line; resuming falls back."""

import shutil
import zipfile

import pytest
import torch
from helpers import history, refused, write_tiny_config

from snella_seg.loading.files import damage

SLIM = "default_hooks.checkpoint.type=SnellaCheckpointHook"
KEEP = "--cfg-options", SLIM


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_dataset):
    """Config and work dir of a run with two checkpoints, and its merged model."""
    from helpers import run_tool

    folder = tmp_path_factory.mktemp("finished")
    config = write_tiny_config(folder, tiny_dataset)
    options = "--work-dir", folder / "run", "--cfg-options", SLIM
    assert run_tool("train", config, *options) == 0
    return config, folder / "run"


def zero_a_page(path):
    """Zero bytes in the midst of the largest tensor of a file, as a bad disk does."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    with open(path, "r+b") as file:
        file.seek(largest.header_offset + 200 + largest.file_size // 2)
        file.write(bytes(64))


def changed(change):
    """A checkpoint whose content was changed before saving."""

    def spoil(path):
        content = torch.load(path, weights_only=False)
        torch.save(change(content), path)

    return spoil


def with_nan(content):
    content["state_dict"]["decode_head.conv_seg.weight"][0] = float("nan")
    return content


BAD = {
    "damaged": (zero_a_page, "is damaged (bytes of"),
    "cut short": (lambda p: p.write_bytes(p.read_bytes()[:5000]), "is cut short or not from"),
    "a list": (changed(lambda c: [1, 2]), "holds a list instead of a dict"),
    "a tensor": (changed(lambda c: torch.ones(3)), "holds a Tensor instead of a dict"),
    "no state": (changed(lambda c: {**c, "state_dict": None}), "holds no weights"),
    "NaN": (changed(with_nan), "holds NaN or infinity in decode_head.conv_seg.weight"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("use", ["test", "load", "resume"])
def test_bad_files_are_refused_in_a_line(tool, finished, tmp_path, kind, use):
    config, run = finished
    spoil, told = BAD[kind]
    path = tmp_path / "bad.pth"
    shutil.copy(run / "iter_8.pth", path)
    spoil(path)
    done = {
        "test": lambda: tool("test", config, path, "--work-dir", tmp_path / "t"),
        "load": lambda: tool(
            "train", config, "--work-dir", tmp_path / "t", "--cfg-options", f"load_from={path}"
        ),
        "resume": lambda: tool("train", config, "--work-dir", tmp_path / "t", "--resume", path),
    }[use]()
    refused(done, "error: checkpoint", told)


def test_weights_alone_cannot_be_resumed(tool, finished, tmp_path):
    config, run = finished
    path = tmp_path / "weights.pth"
    torch.save(
        {"state_dict": torch.load(run / "iter_8.pth", weights_only=False)["state_dict"]}, path
    )
    done = tool("train", config, "--work-dir", tmp_path / "t", "--resume", path)
    refused(done, "has no meta and no optimizer", "load_from")


def test_resuming_falls_back_to_an_earlier_checkpoint(tool, finished, tmp_path):
    config, run = finished
    shutil.copytree(run, tmp_path / "run")
    zero_a_page(tmp_path / "run" / "iter_8.pth")
    (tmp_path / "run" / "last_checkpoint").write_text(str(tmp_path / "run" / "iter_8.pth"))
    done = tool("train", config, "--work-dir", tmp_path / "run", "--resume", *KEEP)
    assert done.code == 0, done.err
    assert "an earlier checkpoint is used" in done.out + done.err
    assert damage(tmp_path / "run" / "iter_8.pth") is None  # written anew
    assert history(tmp_path / "run") == history(run)


def test_a_merged_model_is_not_scored_with_untrained_adapters(tool, finished, tmp_path):
    config, run = finished
    assert tool("merge", config, run / "iter_8.pth", tmp_path / "merged").code == 0
    merged = next((tmp_path / "merged").glob("*.pth"))
    done = tool("test", config, merged, "--work-dir", tmp_path / "t")
    refused(done, "holds no adapters (a merged, stock or fully tuned")
