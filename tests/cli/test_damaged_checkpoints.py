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
    """Config and work dir of a run with two checkpoints."""
    from helpers import run_tool

    folder = tmp_path_factory.mktemp("finished")
    config = write_tiny_config(folder, tiny_dataset)
    options = "--work-dir", folder / "run", "--cfg-options", SLIM
    assert run_tool("train", config, *options) == 0
    return config, folder / "run"


@pytest.fixture(scope="module")
def merged(finished, tmp_path_factory):
    """Stock config and checkpoint of that run."""
    from helpers import run_tool

    (config, run), folder = finished, tmp_path_factory.mktemp("merged")
    assert run_tool("merge", config, run / "iter_8.pth", folder) == 0
    return folder / "merged.py", folder / "merged.pth"


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


def a_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("iter_8.pth", "packed")


#: What a file is made to be -> how, and what is said of it.
BAD = {
    "damaged": (zero_a_page, "is damaged (bytes of"),
    "cut short": (lambda p: p.write_bytes(p.read_bytes()[:5000]), "is cut short or not from"),
    "empty": (lambda p: p.write_bytes(b""), "is cut short or not from torch.save"),
    "a text": (lambda p: p.write_text("weights"), "is cut short or not from torch.save"),
    "a folder": (lambda p: p.unlink() or p.mkdir(), "not found"),
    "a zip": (a_zip, "is not from torch.save, but a zip archive of ['iter_8.pth']"),
    "a list": (changed(lambda c: [1, 2]), "holds a list instead of a dict"),
    "a tensor": (changed(lambda c: torch.ones(3)), "holds a Tensor instead of a dict"),
    "no state": (changed(lambda c: {**c, "state_dict": None}), "holds no weights"),
    "empty state": (changed(lambda c: {**c, "state_dict": {}}), "holds no weights"),
    "state of numbers": (changed(lambda c: {**c, "state_dict": {"a": 1}}), "holds no weights"),
    "NaN": (changed(with_nan), "holds NaN or infinity in decode_head.conv_seg.weight"),
}


def uses(config, path, folder, image):
    """Every command that reads a checkpoint, by what it does with it."""
    out = ("--work-dir", folder / "run")
    paint = ("--device", "cpu", "--out", folder / "seen")
    return {
        "test": ("test", config, path, *out),
        "load": ("train", config, *out, "--cfg-options", f"load_from={path}"),
        "resume": ("train", config, *out, "--resume", path),
        "merge": ("merge", config, path, folder / "merged"),
        "segment": ("segment", image, "--config", config, "--checkpoint", path, *paint),
        "export": ("export", config, path, folder / "out.pt2"),
        "adapter": ("export_adapter", config, path, folder / "out.safetensors"),
        "delta": ("export_delta", config, path, folder / "out.safetensors"),
    }


@pytest.fixture
def picture(tiny_dataset):
    return tiny_dataset / "images" / "validation" / "0.jpg"


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("use", ["test", "load", "resume", "merge", "segment", "export", "adapter"])
def test_bad_files_are_refused_in_a_line(tool, finished, picture, tmp_path, kind, use):
    config, run = finished
    spoil, told = BAD[kind]
    path = tmp_path / "bad.pth"
    shutil.copy(run / "iter_8.pth", path)
    spoil(path)
    refused(tool(*uses(config, path, tmp_path, picture)[use]), "error: checkpoint", told)
    assert not list(tmp_path.glob("out*")) and not list(tmp_path.rglob("iter_*.pth"))


#: What a run cannot go on from, though it holds good weights -> what is said of it.
UNRESUMABLE = {
    "no meta": (lambda c: c.pop("meta"), "has no meta, so no run can go on"),
    "no optimizer": (lambda c: c.pop("optimizer"), "has no optimizer, so no run can go on"),
    "optimizer None": (lambda c: c.update(optimizer=None), "has no optimizer, so no run"),
    "meta a text": (lambda c: c.update(meta="text"), "has no meta that is a dict, so no run"),
    "our state a text": (lambda c: c.update(snella="text"), "has no snella that is a dict"),
    "our state of other shapes": (
        lambda c: spoil_tensors(c["snella"]["tracker"]),
        "the saved importances are of factors of other shapes",
    ),
    "a fully tuned model": (
        lambda c: drop_adapters(c["state_dict"]),
        "holds no adapters (a merged",
    ),
}


def spoil_tensors(state):
    """Give all tensors of nested dicts and lists other shapes."""
    for key, value in state.items() if isinstance(state, dict) else enumerate(state):
        if isinstance(value, (dict, list)):
            spoil_tensors(value)
        elif torch.is_tensor(value):
            state[key] = torch.ones(3)


def drop_adapters(state):
    for name in [name for name in state if ".adapters." in name]:
        del state[name]


@pytest.mark.parametrize("kind", UNRESUMABLE)
def test_what_cannot_be_resumed(tool, finished, picture, tmp_path, kind):
    config, run = finished
    change, told = UNRESUMABLE[kind]
    path = tmp_path / "changed.pth"
    content = torch.load(run / "iter_8.pth", weights_only=False)
    change(content)
    torch.save(content, path)
    commands = uses(config, path, tmp_path, picture)
    refused(tool(*commands["resume"], "--cfg-options", "train_cfg.max_iters=12"), told)
    if kind != "a fully tuned model":  # its weights are good
        for use in ("test", "segment"):
            assert tool(*commands[use]).code == 0


@pytest.mark.parametrize("kind", ["merged", "no state of ours", "no hook"])
def test_what_is_taken_is_warned_of(tool, finished, merged, tmp_path, kind):
    """A fresh task may begin from any model of the kind, and a run without what can be regrown."""
    config, run = finished
    (tmp_path / "no_hook.py").write_text(f"_base_ = {str(config)!r}\ncustom_hooks = []")
    content = torch.load(run / "iter_4.pth", weights_only=False)
    torch.save({**content, "snella": None}, tmp_path / "resumed.pth")
    command, said = {
        "merged": (
            (config, "--cfg-options", f"load_from={merged[1]}"),
            "The checkpoint holds no SNELLA adapters: they keep their initial values",
        ),
        "no state of ours": (
            (config, "--resume", tmp_path / "resumed.pth"),
            "the resumed checkpoint holds no SNELLA state: importances start from zero",
        ),
        "no hook": ((tmp_path / "no_hook.py",), "without a SparsityAllocationHook: matrices do no"),
    }[kind]
    done = tool("train", command[0], "--work-dir", tmp_path / "run", *command[1:])
    assert done.code == 0 and said in done.out + done.err


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


@pytest.mark.parametrize("use", ["test", "merge", "segment", "export", "adapter", "delta"])
def test_a_merged_model_is_not_taken_for_an_adapted_one(
    tool, finished, merged, picture, tmp_path, use
):
    done = tool(*uses(finished[0], merged[1], tmp_path, picture)[use])
    refused(done, "holds no adapters (a merged, stock or fully tuned")


@pytest.mark.parametrize("use", ["test", "load", "segment", "export"])
@pytest.mark.parametrize("kind", ["checkpoint", "adapter file"])
def test_adapters_are_not_passed_over(tool, finished, merged, picture, tmp_path, use, kind):
    """As a stock model would, which then is the base with the task's heads."""
    config, run = finished
    path = run / "iter_8.pth"
    if kind == "adapter file":
        path = tmp_path / "task.safetensors"
        assert tool("export_adapter", config, run / "iter_8.pth", path).code == 0
    done = tool(*uses(merged[0], path, tmp_path, picture)[use])
    refused(done, "that this model has no place for: use the config that it was trained with")


#: Options of commands -> what is said. FILE stands for a file, TASK for an adapter file.
OPTIONS = {
    ("export", "--size", 0, 0): "--size 0 0: height and width are positive multiples of 32",
    ("segment", "--crop", 0, 0): "--crop must be two positive numbers, got [0, 0]",
    ("segment", "--crop", 32, 32, "--stride", 0, 0): "--stride must be two positive numbers",
    ("segment", "--device", "cpuu"): "cpuu",
    ("test", "--out", "FILE"): "is a file, where a folder is to be written to",
    ("test", "--show-dir", "FILE"): "is a file, where a folder is to be written to",
    ("test", "--work-dir", "FILE"): "is a file, where a folder is to be written to",
    ("compose_adapters", "TASK", "TASK", "--weights", "nan", 1): "--weights must be finite numbers",
    ("compose_adapters", "TASK", "FILE"): "is cut short or no safetensors file",
    ("compose_adapters", "TASK", "none.safetensors"): "file not found: none.safetensors",
    ("inspect_adapter", "FILE"): "is cut short or no safetensors file",
    ("report", "FILE"): "work dir not found",
}


@pytest.mark.parametrize("command", OPTIONS, ids=lambda command: " ".join(map(str, command)))
def test_options_of_commands(tool, finished, picture, tmp_path, command):
    config, run = finished
    (file := tmp_path / "file").write_text("mine")
    task = tmp_path / "task.safetensors"
    name, *options = [{"FILE": file, "TASK": task}.get(part, part) for part in command]
    if "TASK" in command:
        assert tool("export_adapter", config, run / "iter_8.pth", task).code == 0
    full = uses(config, run / "iter_8.pth", tmp_path, picture).get(name, (name,))
    refused(tool(*full, *options), OPTIONS[command])
    assert file.read_text() == "mine" and not (tmp_path / "seen").exists()
