"""Accidents of an afternoon: pipelines out of order, parts that contradict, other files on resume.

Each ends with one line that names the part and says what to do, and leaves nothing half-written.
"""

import pytest
from helpers import refused, run_tool

LOAD, LABELS, PACK = (
    "dict(type='LoadImageFromFile')",
    "dict(type='LoadAnnotations', reduce_zero_label=True)",
    "dict(type='PackSegInputs')",
)


def pipeline(*steps: str, loader: str = "train") -> str:
    return f"{loader}_dataloader = dict(dataset=dict(pipeline=[{', '.join(steps)}]))"


def head(options: str) -> str:
    return f"model = dict(decode_head=dict({options}))"


#: What happened -> what the config adds, what the line says.
CONFIGS = {
    "nothing loads": (
        pipeline(LABELS, PACK),
        "train_dataloader.dataset.pipeline loads no image: begin with dict(type='LoadImageFrom",
    ),
    "no step at all": (pipeline(), "train_dataloader.dataset.pipeline loads no image"),
    "no labels to train by": (
        pipeline(LOAD, PACK),
        "train_dataloader.dataset.pipeline loads no label maps, which training needs: put dict(",
    ),
    "no labels to score by": (
        pipeline(LOAD, PACK, loader="val"),
        "val_dataloader.dataset.pipeline loads no label maps, which val_evaluator needs",
    ),
    "nothing packs": (
        pipeline(LOAD, LABELS),
        "train_dataloader.dataset.pipeline packs nothing: end it with dict(type='PackSegInputs')",
    ),
    "packed too early": (
        pipeline(LOAD, LABELS, PACK, "dict(type='RandomFlip', prob=0.5)"),
        "train_dataloader.dataset.pipeline goes on behind PackSegInputs with RandomFlip",
    ),
    "crops of several sizes": (
        pipeline(
            *(LOAD, LABELS),
            "dict(type='RandomResize', scale=(96, 96), ratio_range=(1.0, 1.6))",
            PACK,
        ),
        "images of a batch differ in size: let the pipeline end on one size (RandomCrop",
    ),
    "batch norm of one pixel": (
        "train_dataloader = dict(batch_size=1)",
        "batch norm saw a single value: raise train_dataloader.batch_size",
    ),
    "no checkpoint": (
        "default_hooks = dict(checkpoint=dict(interval=100, save_last=False))",
        "default_hooks.checkpoint would write nothing: its interval is 100, the run has 8 iter",
    ),
    "no checkpoint, by epochs": (
        "train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=3)\n"
        "train_dataloader = dict(sampler=dict(type='DefaultSampler'))\n"
        "default_hooks = dict(checkpoint=dict(by_epoch=True, interval=4, save_last=False))",
        "its interval is 4, the run has 3 epochs, and save_last=False leaves the last out too",
    ),
    "a function of the config's own": (
        "train_dataloader = dict(collate_fn=lambda batch: batch)",
        "train_dataloader.collate_fn is a function that the config itself defines (<lambda>)",
    ),
    "a score that is none": (
        "default_hooks = dict(checkpoint=dict(save_best='loss'))",
        "save_best must be auto or one of aAcc, mAcc, mDice, mFscore, mIoU, mPrecision, mRecall",
    ),
    "no loop to validate by": (
        "val_cfg = None",
        "val_cfg is missing or None, while val_dataloader and val_evaluator are given: give all",
    ),
    "nothing to validate on": (
        "val_dataloader = None",
        "val_dataloader is missing or None, while val_cfg and val_evaluator are given",
    ),
    "one logit for four classes": (
        head("out_channels=1"),
        "model.decode_head has one logit (out_channels=1), which tells two classes apart",
    ),
    "weights for two classes of four": (
        head("loss_decode=dict(type='CrossEntropyLoss', class_weight=[1.0, 2.0])"),
        "class_weight of loss_decode needs one weight for each of the head's num_classes",
    ),
    "windows with gaps": (
        "model = dict(test_cfg=dict(mode='slide', crop_size=(32, 32), stride=(64, 64)))",
        "model.test_cfg must be a dict with crop_size, and a stride no larger",
    ),
    "a head's capitals": (head("type='UperHead'"), "'UperHead', did you mean 'UPerHead'?"),
    "a schedule's capitals": (
        "param_scheduler = [dict(type='PolyLr', begin=0, end=8, by_epoch=False)]",
        "param_scheduler.0.type: no class is registered as 'PolyLr', did you mean 'PolyLR'?",
    ),
    "a loss cut short": (
        head("loss_decode=dict(type='CrossEntropy')"),
        "did you mean 'OhemCrossEntropy' or 'CrossEntropyLoss'?",
    ),
    "an import that is not there": (
        "custom_imports = dict(imports=['my_projekt'])",
        "custom_imports names a module that is not installed, or not in a folder of PYTHONPATH",
    ),
    "labels by another ending": (
        "train_dataloader = dict(dataset=dict(seg_map_suffix='.tif'))",
        "set train_dataloader.dataset.seg_map_suffix to how the names of its files end",
    ),
    "images and labels swapped": (
        "train_dataloader = dict(dataset=dict(img_suffix='.png', seg_map_suffix='.jpg', "
        "data_prefix=dict(img_path='annotations/training', seg_map_path='images/training')))",
        "0.jpg is a picture of several channels (shape (64, 64, 3)): convert colours",
    ),
    "no label is ignored": (head("ignore_index=-1"), "decode_head knows 0 to 3 and ignores -1"),
    "an auxiliary head of five": (
        "model = dict(auxiliary_head=dict(num_classes=5))",
        "auxiliary_head has 5 classes, the training set names 4",
    ),
    "a zero that is reduced once": (
        "train_dataloader = dict(dataset=dict(reduce_zero_label=False))",
        "`reduce_zero_label` as False but when load annotation the `reduce_zero_label` is True",
    ),
    "per cent": (
        "custom_hooks = [dict(type='SparsityAllocationHook', target_sparsity=80, interval=2)]",
        "target_sparsity must lie in [0, 1), got 80",
    ),
    "a list that is not there": (
        "train_dataloader = dict(dataset=dict(ann_file='train.txt'))",
        "train.txt (ann_file); set train_dataloader.dataset.data_root",
    ),
    "a schedule that ends first": (
        "param_scheduler = [dict(type='PolyLR', begin=10, end=5, by_epoch=False)]",
        "PolyLR cannot be built as the config asks (begin=10, end=5)",
    ),
    "an address without a network": (
        "model = dict(pretrained='https://nowhere.invalid/vit.pth')",
        "base weights cannot be read from https://nowhere.invalid/vit.pth",
    ),
}


@pytest.fixture
def derive(tiny_config_file):
    """``derive(text)`` writes a config that inherits the tiny one."""

    def write(text: str):
        path = tiny_config_file.with_name("derived.py")
        path.write_text(f"_base_ = './{tiny_config_file.name}'\n{text}")
        return path

    return write


@pytest.mark.parametrize("name", CONFIGS)
def test_an_accident_ends_in_a_line(name, tool, derive, tmp_path):
    text, message = CONFIGS[name]
    done = tool("train", derive(text), "--work-dir", tmp_path / "run")
    refused(done, message)
    assert not list((tmp_path / "run").rglob("*.pth*"))


def test_transforms_of_others_may_load_and_pack(tool, derive):
    """A pipeline is let pass where a transform that is not mmseg's may do what seems to lack."""
    text = "custom_imports = dict(imports=['snella_seg.register', 'my_transforms'])\n"
    own = "from mmcv.transforms import BaseTransform\nfrom mmseg.registry import TRANSFORMS\n"
    own += "from mmseg.datasets.transforms import PackSegInputs\n"
    own += "@TRANSFORMS.register_module(force=True)\nclass PackMine(PackSegInputs):\n    pass\n"
    path = derive(text + pipeline(LOAD, LABELS, "dict(type='PackMine')"))
    path.with_name("my_transforms.py").write_text(own)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)
        done = tool("train", path, "--work-dir", path.parent / "run")
    assert done.code == 0, done.err


def test_crops_larger_than_the_batch_are_told(tool, derive, tmp_path):
    steps = "dict(type='Resize', scale=(96, 96))", "dict(type='RandomCrop', crop_size=96)"
    path = derive(pipeline(LOAD, LABELS, *steps, PACK))
    done = tool("train", path, "--work-dir", tmp_path / "run")
    assert done.code == 0, done.err
    told = "pipeline crops to (96, 96), model.data_preprocessor.size is (64, 64): batches have the"
    assert told in done.out + done.err


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_dataset):
    """A run that has ended, and its config."""
    from helpers import write_tiny_config

    folder = tmp_path_factory.mktemp("finished")
    config = write_tiny_config(folder, tiny_dataset)
    assert run_tool("train", config, "--work-dir", folder / "run") == 0
    return folder / "run", config


LONGER = "train_cfg = dict(max_iters=12)\n"
SGD = "optim_wrapper = dict(optimizer=dict(_delete_=True, type='SGD', lr=0.1))"
GROUPS = "optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=2.0))))"


@pytest.mark.parametrize("text", [SGD, GROUPS])
def test_another_optimizer_on_resume(text, tool, derive, finished):
    run, _ = finished
    before = {path.name for path in run.glob("*.pth")}
    done = tool("train", derive(LONGER + text), "--work-dir", run, "--resume")
    refused(done, "the checkpoint to resume from had another optimizer, or other parameters in it")
    assert {path.name for path in run.glob("*.pth")} == before


def test_tools_called_amiss(tool, derive, finished, tmp_path):
    run, config = finished
    checkpoint = run / "iter_8.pth"
    heads = (f"{name}_head=dict(num_classes=5)" for name in ("decode", "auxiliary"))
    five = derive(f"model = dict({', '.join(heads)})")
    bare = config.with_name("no_tta.py")
    bare.write_text(f"_base_ = './{config.name}'\ntta_pipeline = None")
    for args, message in {
        ("test", five, checkpoint): "is (4, 16, 1, 1) instead of (5, 16, 1, 1). Use the config",
        ("test", config, checkpoint, "--work-dir", "/proc/none"): "the folder /proc/none cannot",
        ("train", config, "--work-dir", "/proc/none"): "the folder /proc/none cannot be made (No",
        ("test", config, run): "checkpoint not found",
        ("test", config, config): "is cut short or not from torch.save",
        ("test", checkpoint, config): "configs are .py, .json or .yaml files",
        ("train", tmp_path): "config not found",
        ("train", config, "--launcher", "pytorch"): "by torchrun --nproc_per_node=N tools/train.py",
        ("export", config, checkpoint, tmp_path / "x.bin"): "name the file .onnx (ONNX) or .pt2",
        ("report", tmp_path / "none"): "work dir not found",
        ("compare", config, "--methods", "lorra"): "unknown method 'lorra'; choose one of lora",
        ("test", bare, checkpoint, "--tta"): "--tta needs tta_model",
    }.items():
        refused(tool(*args), message)
    done = tool("train", config, "--cfg-options", "train_cfg.max_iters", "8")
    assert done.code == 2 and "expected KEY=VALUE, got 'train_cfg.max_iters'" in done.err
