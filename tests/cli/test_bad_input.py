"""Mistakes end a tool with status 1 and one line on stderr that says what to do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, refused


@pytest.fixture
def derive(tiny_config_file):
    """``derive(text)`` writes a config that inherits the tiny one."""

    def write(text: str) -> Path:
        path = tiny_config_file.with_name("derived.py")
        path.write_text(f"_base_ = './{tiny_config_file.name}'\n{text}")
        return path

    return write


@pytest.fixture
def data_copy(tiny_dataset, tmp_path) -> Path:
    """A dataset that a test may spoil."""
    return shutil.copytree(tiny_dataset, tmp_path / "data")


OPTIONS = {
    "kernel": (
        'model = dict(backbone=dict(adapter=dict(kernel="cubic")))',
        "unknown kernel 'cubic'; choose one of",
    ),
    "sparsifier": (
        'model = dict(backbone=dict(adapter=dict(sparsifier="top")))',
        "unknown sparsifier 'top'; choose one of",
    ),
    "rank": (
        "model = dict(backbone=dict(adapter=dict(rank=5)))",
        "rank must be a positive multiple of heads, got rank=5 with heads=2",
    ),
    "initial_sparsity": (
        "model = dict(backbone=dict(adapter=dict(initial_sparsity=1.0)))",
        "initial_sparsity must lie in [0, 1), got 1.0",
    ),
    "token_share": (
        "model = dict(backbone=dict(adapter=dict(token_share=0)))",
        "token_share must lie in (0, 1], 1 for LoRA, got 0",
    ),
    "token_share of LoRA": (
        "model = dict(backbone=dict(method='lora', adapter=dict(token_share=0.5)))",
        "method='lora' has token_share 1.0, got adapter.token_share=0.5; leave it out",
    ),
    "adapter_option": (
        "model = dict(backbone=dict(adapter=dict(ranks=8)))",
        "unknown adapter option 'ranks'; near matches: rank",
    ),
    "targets": (
        'model = dict(backbone=dict(targets=["q", "layers.*.ffn.fc3"]))',
        "target 'layers.*.ffn.fc3' matches no matrix; near matches: ",
    ),
    "trainable": (
        'model = dict(backbone=dict(trainable=["cls_tokens"]))',
        "trainable 'cls_tokens' matches no parameter; near matches: cls_token",
    ),
    "wrapped_twice": (
        """
model = dict(
    backbone=dict(
        _delete_=True, type="SnellaBackbone", backbone={{_base_.model.backbone}}
    )
)
""",
        "SnellaBackbone wraps a SnellaBackbone: the config that you inherit is wrapped already",
    ),
    "not_deleted": (
        "model = dict(backbone=dict(img_size=64, patch_size=8))",
        "SnellaBackbone got img_size, patch_size, which belong to the inner backbone: wrap a "
        "config with backbone=dict(_delete_=True, type='SnellaBackbone'",
    ),
    "no_inner_backbone": (
        'model = dict(backbone=dict(_delete_=True, type="SnellaBackbone"))',
        "backbone",
    ),
    "target_sparsity": (
        'custom_hooks = [dict(type="SparsityAllocationHook", target_sparsity=80)]',
        "target_sparsity must lie in [0, 1), got 80",
    ),
    "interval": (
        'custom_hooks = [dict(type="SparsityAllocationHook", interval=0)]',
        "interval must be a positive number of iterations, got 0",
    ),
    "importance": (
        'custom_hooks = [dict(type="SparsityAllocationHook", importance="size")]',
        "unknown importance 'size'; choose one of sensitivity, per_weight, "
        "magnitude, frobenius, common_threshold",
    ),
    "short_schedule": (
        'custom_hooks = [dict(type="SparsityAllocationHook", interval=2, warmup_epochs=3)]',
        "the schedule of 4 epochs is shorter than its warm-up (3) and final epochs (1) together; "
        "train longer or lower them",
    ),
    "rank_as_text": (
        "model = dict(backbone=dict(adapter=dict(rank='8')))",
        "rank must be int, got '8'",
    ),
    "text_for_a_boolean": (
        "model = dict(backbone=dict(check_base='False'))",
        "check_base must be bool, got 'False'",
    ),
    "targets_as_dict": (
        "model = dict(backbone=dict(targets=dict(q=True)))",
        "targets must be str | Sequence[str], got",
    ),
    "boolean_interval": (
        'custom_hooks = [dict(type="SparsityAllocationHook", interval=True)]',
        "interval must be int | None, got True",
    ),
    "endless_interval": (
        'custom_hooks = [dict(type="SparsityAllocationHook", interval=float("inf"))]',
        "interval must be int | None, got inf",
    ),
    "half_an_epoch": (
        'custom_hooks = [dict(type="SparsityAllocationHook", interval=2, warmup_epochs=0.5)]',
        "warmup_epochs must be int, got 0.5",
    ),
    "hook_twice": (
        "custom_hooks = 2 * [dict(type='SparsityAllocationHook', interval=2)]",
        "custom_hooks holds SparsityAllocationHook 2 times; keep one",
    ),
    "slim_as_text": (
        "default_hooks = dict(checkpoint=dict(type='SnellaCheckpointHook', slim='no'))",
        "slim must be bool, got 'no'",
    ),
    "rate_as_text": (
        "optim_wrapper = dict(constructor='SnellaOptimWrapperConstructor', "
        "paramwise_cfg=dict(backbone_lr='1e-3'))",
        "optim_wrapper.paramwise_cfg.backbone_lr must be a number, got '1e-3'",
    ),
    "custom_key": (
        "optim_wrapper = dict(constructor='SnellaOptimWrapperConstructor', "
        "paramwise_cfg=dict(custom_keys=dict(adaptors=dict(lr_mult=3))))",
        "custom_keys 'adaptors' is part of no parameter's name, did you mean 'adapters'?",
    ),
    "accumulation": (
        "optim_wrapper = dict(constructor='SnellaOptimWrapperConstructor', accumulative_counts=0)",
        "optim_wrapper.accumulative_counts must be a positive integer, got 0",
    ),
    "nothing_adapted": (
        "model = dict(backbone=dict(targets=[]))",
        "the model carries no SNELLA adapters",
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_option(name, tool, derive, tmp_path):
    text, message = OPTIONS[name]
    refused(tool("train", derive(text), "--work-dir", tmp_path / "run"), message)


def test_missing_config(tool):
    refused(tool("train", "no/such_config.py"), "config not found: no/such_config.py")
    refused(tool("test", "no/such_config.py", "x.pth"), "config not found: no/such_config.py")


def test_missing_checkpoints(tool, tiny_config_file, tmp_path):
    config, missing = tiny_config_file, tmp_path / "none.pth"
    refused(tool("test", config, missing), f"checkpoint not found: {missing}")
    resumed = tool("train", config, "--resume", missing)
    refused(resumed, f"checkpoint to resume from not found: {missing}")
    loaded = tool("train", config, "--cfg-options", f"load_from={missing}")
    refused(loaded, f"checkpoint (load_from) not found: {missing}")


def test_missing_base_weights(tool, derive, tmp_path):
    config = derive(
        "model = dict(backbone=dict(backbone=dict("
        "init_cfg=dict(type='Pretrained', checkpoint='no/vit.pth'))))"
    )
    outcome = tool("train", config, "--work-dir", tmp_path / "run")
    refused(outcome, "base weights not found: no/vit.pth; put the file there or set", "init_cfg")


def test_missing_dataset_folder(tool, tiny_config_file):
    option = "train_dataloader.dataset.data_root=no/data"
    outcome = tool("train", tiny_config_file, "--cfg-options", option)
    missing = "data not found: no/data/images/training (img_path)"
    refused(outcome, f"{missing}; set train_dataloader.dataset.data_root (--cfg-options)")
    option = "val_dataloader.dataset.data_prefix.seg_map_path=labels"
    outcome = tool("train", tiny_config_file, "--cfg-options", option)
    refused(outcome, "labels (seg_map_path); set val_dataloader.dataset.data_root")


@pytest.mark.parametrize("content", [None, "0.webp"])
@pytest.mark.parametrize(
    "folder, suffix", [("images/training", ".jpg"), ("annotations/training", ".png")]
)
def test_empty_dataset(folder, suffix, content, tool, tiny_config_file, data_copy):
    shutil.rmtree(data_copy / folder)
    (data_copy / folder).mkdir()
    if content:
        (data_copy / folder / content).touch()
    option = f"train_dataloader.dataset.data_root={data_copy}"
    outcome = tool("train", tiny_config_file, "--cfg-options", option)
    refused(outcome, f"empty dataset: no *{suffix} in {data_copy / folder}; set train_dataloader")


def test_list_of_images(tool, tiny_config_file, tmp_path):
    option = f"train_dataloader.dataset.ann_file={tmp_path / 'train.txt'}"
    command = ("train", tiny_config_file, "--work-dir", tmp_path / "run", "--cfg-options", option)
    refused(tool(*command), "train.txt (ann_file); set train_dataloader.dataset.data_root")
    (tmp_path / "train.txt").write_text("\n")
    refused(tool(*command), "empty dataset:", "train.txt lists no image")
    (tmp_path / "train.txt").write_text("0\n2\n")
    assert tool(*command).code == 0


def test_a_run_that_would_never_reallocate(tool, tiny_config_file, tmp_path):
    options = ("custom_hooks.0.interval=100", "train_cfg.max_iters=2", "train_cfg.val_interval=2")
    outcome = tool("train", tiny_config_file, "--work-dir", tmp_path, "--cfg-options", *options)
    refused(
        outcome,
        "no reallocation would take place: the first is due after 100 iterations, the run has 2",
        "Train longer, or set interval of SparsityAllocationHook",
    )
    assert not list(tmp_path.glob("*.pth"))


def test_optimizer_without_factors(tool, derive, tmp_path):
    from mmengine.optim import DefaultOptimWrapperConstructor
    from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS

    @OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
    class HeadsOnly(DefaultOptimWrapperConstructor):
        def __call__(self, model):
            return super().__call__(model.decode_head)

    config = derive('optim_wrapper = dict(constructor="HeadsOnly")')
    outcome = tool("train", config, "--work-dir", tmp_path / "run")
    refused(outcome, "the optimizer does not hold all SNELLA factors; let one optimizer train them")


@pytest.fixture
def checkpoint(tiny_config_file, tmp_path):
    """``checkpoint(change)`` saves an untrained tiny model after ``change(state_dict)``."""
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    def save(change, part: str = "") -> Path:
        init_default_scope("mmseg")
        model = MODELS.build(Config.fromfile(tiny_config_file).model)
        state = {
            k.removeprefix(part): v for k, v in model.state_dict().items() if k.startswith(part)
        }
        change(state)
        torch.save({"state_dict": state}, tmp_path / "saved.pth")
        return tmp_path / "saved.pth"

    return save


IN_PROJ = "backbone.backbone.layers.0.attn.attn.in_proj_weight"
FACTORS = "backbone.backbone.layers.0.attn.attn.adapters.k.in_factors"
CHANGES = {
    "wrong_shape": (
        lambda state: state.update({IN_PROJ: torch.zeros(9, 3)}),
        ("do not fit this VisionTransformer", "in_proj_weight (9, 3) instead of (96, 32)"),
    ),
    "missing_base": (
        lambda state: state.pop(IN_PROJ),
        ("incomplete load of the frozen VisionTransformer", "layers.0.attn.attn.in_proj_weight"),
    ),
    "missing_factors": (
        lambda state: state.pop(FACTORS),
        ("misses adapter values", "adapters.k.in_factors", "Use the targets, rank and kernel"),
    ),
    "other_rank": (
        lambda state: state.update({FACTORS: torch.zeros(2, 32, 8)}),
        ("adapters.k.in_factors (2, 32, 8) instead of (2, 32, 2)", "Use the rank"),
    ),
    "nan_factors": (
        lambda state: state[FACTORS].fill_(float("nan")),
        ("holds NaN or infinity", "adapters.k.in_factors", "use an earlier one"),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_checkpoint_that_does_not_fit(name, tool, tiny_config_file, checkpoint, tmp_path):
    change, fragments = CHANGES[name]
    saved = checkpoint(change)
    refused(tool("test", tiny_config_file, saved, "--work-dir", tmp_path / "test"), *fragments)


def test_checkpoint_of_other_heads(tool, tiny_config_file, checkpoint, tmp_path):
    name = "decode_head.conv_seg.weight"
    saved = checkpoint(lambda state: state.update({name: torch.zeros(7, 16, 1, 1)}))
    options = ("--work-dir", tmp_path / "run")
    message = f"{name} is (7, 16, 1, 1) instead of (4, 16, 1, 1). Use the config that"
    refused(tool("test", tiny_config_file, saved, *options), message)
    refused(tool("test", tiny_config_file, saved, "--tta", *options), message)
    content = dict.fromkeys(("meta", "optimizer", "message_hub"), {"is": "not reached"})
    torch.save({**content, **torch.load(saved, weights_only=True)}, saved)
    refused(tool("train", tiny_config_file, "--resume", saved, *options), message)


def test_checkpoint_without_auxiliary_head(tool, tiny_config_file, checkpoint, tmp_path):
    def drop(state):
        for name in [name for name in state if name.startswith("auxiliary_head.")]:
            del state[name]

    saved = checkpoint(drop)
    assert tool("test", tiny_config_file, saved, "--work-dir", tmp_path / "test").code == 0


def test_incomplete_base_weights(tool, derive, checkpoint, tmp_path):
    name = "layers.1.ffn.layers.1.weight"
    base = checkpoint(lambda state: state.pop(name), part="backbone.backbone.")
    config = derive(f"model = dict(pretrained='{base}')")
    outcome = tool("train", config, "--work-dir", tmp_path / "run")
    refused(outcome, "incomplete load of the frozen VisionTransformer", name, "trainable=[...]")


BASES = {
    "NaN": (lambda s: s["cls_token"].fill_(float("nan")), "holds NaN or infinity in cls_token"),
    "infinite": (lambda s: s["cls_token"].fill_(float("inf")), "holds NaN or infinity in cls_to"),
    "empty": (lambda s: s.clear(), "holds no weights; give a file of pretrained weights"),
}


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_base_weights_that_cannot_be_meant(kind, suffix, tool, derive, checkpoint, tmp_path):
    from safetensors.torch import save_file

    change, message = BASES[kind]
    base = checkpoint(change, part="backbone.backbone.")
    if suffix == ".safetensors":
        state = torch.load(base, weights_only=True)["state_dict"]
        base = base.with_suffix(suffix)
        save_file(state, base)
    done = tool("train", derive(f"model = dict(pretrained='{base}')"), "--work-dir", tmp_path / "r")
    refused(done, f"{base} {message}")
    assert not list((tmp_path / "r").rglob("*.pth*"))


def test_a_file_that_is_no_checkpoint(tool, tiny_config_file, checkpoint, tmp_path):
    (tmp_path / "text.pth").write_text("not a checkpoint")
    outcome = tool("test", tiny_config_file, tmp_path / "text.pth")
    refused(outcome, "checkpoint is cut short or not from torch.save", "text.pth; copy it anew")
    saved = checkpoint(lambda state: None)
    saved.write_bytes(saved.read_bytes()[:-100])
    outcome = tool("train", tiny_config_file, "--resume", saved)
    refused(outcome, "checkpoint to resume from is cut short", str(saved))


def test_config_that_is_not_python(tool, derive):
    path = derive("model = dict(backbone=dict(targets=[)")
    refused(tool("train", path), f"config {path}: ", "model = dict(backbone=dict(targets=[)")


def test_type_that_nobody_registered(tool, derive, tmp_path):
    path = derive('custom_hooks = [dict(type="SparsityHook")]')
    refused(tool("train", path, "--work-dir", tmp_path), "SparsityHook is not in the", "registry")


def test_missing_label_map_seen_by_a_worker(tool, tiny_config_file, data_copy, tmp_path):
    (data_copy / "annotations/validation/1.png").unlink()
    options = ("train_cfg.max_iters=4", "val_dataloader.num_workers=1")
    root = f"val_dataloader.dataset.data_root={data_copy}"
    arguments = ("--work-dir", tmp_path, "--cfg-options", *options, root)
    outcome = tool("train", tiny_config_file, *arguments)
    refused(outcome, "label map", "annotations/validation/1.png is missing")


def test_stderr_of_a_command_is_one_line(tiny_config_file, tmp_path):
    option = "model.backbone.adapter.rank=5"
    command = [sys.executable, ROOT / "tools/train.py", tiny_config_file, "--cfg-options", option]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert "got rank=5 with heads=2" in lines[-1]
    assert "Traceback" not in done.stderr


OVERRIDES = {
    "modle.backbone.adapter.rank=8": "no 'modle', did you mean 'model'?",
    "optim_wraper.optimizer.lr=1": "no 'optim_wraper', did you mean 'optim_wrapper'?",
    "train_dataloder.batch_size=4": "no 'train_dataloder', did you mean 'train_dataloader'?",
    "default_hooks.checkpont.interval=1": "no 'checkpont', did you mean 'checkpoint'?",
    "val_evaluator.iou_metric=mIoU": "no 'iou_metric', did you mean 'iou_metrics'?",
    "norm_eval=True": "the config has no 'norm_eval', and no tool reads it",
    "seed=3": "the config has no 'seed', and no tool reads it",
    "custom_hooks.3.interval=2": "'3' is no place in a list of 1",
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_an_override_that_is_a_slip_of_the_pen(tool, tiny_config_file, tmp_path, override):
    done = tool("train", tiny_config_file, "--work-dir", tmp_path, "--cfg-options", override)
    refused(done, OVERRIDES[override])


def test_overrides_that_a_config_leaves_open_are_taken(tool, tiny_config_file, tmp_path):
    options = (
        "--cfg-options",
        "optim_wrapper.clip_grad.max_norm=1.0",
        "find_unused_parameters=True",
    )
    done = tool("train", tiny_config_file, "--work-dir", tmp_path, *options)
    assert done.code == 0, done.err


UNREADABLE = {
    "c.txt": ("model = dict()", "configs are .py, .json or .yaml files"),
    "empty.py": ("", "has no model: it must hold one, or inherit it"),
    "name.py": ("model = dict(type=Encoder)", "NameError: name 'Encoder' is not defined"),
    "loop.py": ("_base_ = './loop.py'", "leads back to itself"),
    "syntax.py": ("model = dict(", "syntax.py: "),
}


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("command", ["train", "preflight"])
def test_a_config_that_cannot_be_read(tool, tmp_path, name, command):
    text, message = UNREADABLE[name]
    (tmp_path / name).write_text(text)
    refused(tool(command, tmp_path / name), message)


def test_files_under_the_name_of_another_kind(tool, tiny_config_file, checkpoint, tmp_path):
    saved = checkpoint(lambda state: None)
    for command in ("export_adapter", "export_delta"):
        done = tool(command, tiny_config_file, saved, tmp_path / "out.pth")
        refused(done, "out.pth will be a .safetensors file, name it so")


def test_a_folder_and_a_file_in_the_place_of_what_is_written(
    tool, tiny_config_file, checkpoint, tmp_path
):
    saved, taken = checkpoint(lambda state: None), tmp_path / "taken"
    (tmp_path / "there.safetensors").mkdir()
    done = tool("export_adapter", tiny_config_file, saved, tmp_path / "there.safetensors")
    refused(done, "there.safetensors is a folder, where a file is to be written")
    taken.write_text("mine")
    for command in (
        ("export_adapter", tiny_config_file, saved, taken / "a.safetensors"),
        ("merge", tiny_config_file, saved, taken),
        ("train", tiny_config_file, "--work-dir", taken),
    ):
        refused(tool(*command), "taken is a file, where a folder is to be written to")
    assert taken.read_text() == "mine"


def test_a_text_for_an_image(tool, tiny_config_file, checkpoint, tmp_path):
    (tmp_path / "image.png").write_text("not a picture")
    saved, image = checkpoint(lambda state: None), tmp_path / "image.png"
    done = tool("merge", tiny_config_file, saved, tmp_path / "merged", "--image", image)
    refused(done, "image.png cannot be read by the test pipeline")
