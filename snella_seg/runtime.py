"""What the tools do around mmengine's Runner: checks, and fitting a config to the machine."""

import copy
import functools
import importlib
import inspect
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import find_latest_checkpoint, load_checkpoint
from mmseg.registry import DATASETS, MODELS
from torch import nn

from .checkpoint import CheckpointError

_REMOTE = ("http://", "https://", "s3://", "modelzoo://", "torchvision://", "open-mmlab://")


def load_config(path: str, options: dict | None = None) -> Config:
    """Read a config and merge ``--cfg-options`` into it.

    Raises:
        FileNotFoundError: when it is not there.
        ValueError: when it is not Python.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"config not found: {path}")
    try:
        cfg = Config.fromfile(path)
    except SyntaxError as error:
        raise ValueError(
            f"config {path}: {error.msg}, see {(error.text or '').strip()!r}"
        ) from None
    if options:
        cfg.merge_from_dict(options)
    return cfg


def set_work_dir(cfg: Config, work_dir: str | None, config_path: str) -> None:
    """Decide the work dir as mmseg does: argument, then config, then the config's name."""
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("work_dirs") / Path(config_path).stem)


def check_checkpoint(path: str, what: str) -> None:
    """See that a local file is there and may be a checkpoint; remote addresses are let pass.

    Raises:
        FileNotFoundError: when there is none.
        CheckpointError: when it is cut short, or something else. (Adapter files are checked when
            they are read.)
    """
    if path.startswith(_REMOTE):
        return
    if not Path(path).is_file():
        raise FileNotFoundError(f"{what} not found: {path}")
    if path.endswith(".safetensors"):
        return
    with open(path, "rb") as file:
        is_pickle = file.read(1) == b"\x80"  # as torch saved before 1.6
    if not is_pickle and not zipfile.is_zipfile(path):
        raise CheckpointError(f"{what} is cut short or not from torch.save: {path}; copy it anew")


def latest_checkpoint(work_dir: str) -> str | None:
    """The checkpoint from which a run in ``work_dir`` goes on, or None to begin.

    That is the one that ``last_checkpoint`` names, if it is whole, in the work dir if that has been
    moved; else the newest whole one.

    Raises:
        CheckpointError: when one was written, but none is whole.
    """
    folder, candidates = Path(work_dir), []
    named = find_latest_checkpoint(work_dir)
    if named and "://" in named:
        return named
    if named:
        candidates = [Path(named), folder / Path(named).name]
    others = [*folder.glob("iter_*.pth"), *folder.glob("epoch_*.pth")]
    candidates += sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)
    found = next((str(path) for path in candidates if zipfile.is_zipfile(path)), None)
    if found is None and named is not None:
        raise CheckpointError(
            f"{folder / 'last_checkpoint'} names {named or 'nothing'}, and no whole checkpoint is "
            "there to resume from; give --resume PATH, or remove that file to begin anew"
        )
    return found


def refuse_other_heads(model: nn.Module) -> None:
    """Let a model refuse checkpoints that do not fit its parts outside of the backbone.

    mmengine passes over what does not fit, so a head of other classes would stay random. The
    auxiliary head may be missing: it serves in training only.
    """
    while hasattr(model, "module"):  # DDP, test-time augmentation
        model = model.module

    def check(state_dict, prefix, *_):
        misfits = []
        for name, value in model.state_dict().items():
            found = state_dict.get(prefix + name)
            if name.startswith("backbone.") or not value.is_floating_point():
                continue
            if found is None and not name.startswith("auxiliary_head."):
                misfits.append(f"{name} is missing")
            elif found is not None and found.shape != value.shape:
                shapes = f"{tuple(found.shape)} instead of {tuple(value.shape)}"
                misfits.append(f"{name} is {shapes}")
        if misfits:
            raise CheckpointError(
                f"the checkpoint does not fit this model: {'; '.join(misfits[:4])}"
                + (f" and {len(misfits) - 4} more" if len(misfits) > 4 else "")
                + ". Use the config that it was trained with"
            )

    model._register_load_state_dict_pre_hook(check)


def build_segmentor(cfg: Config, checkpoint: str | None = None) -> nn.Module:
    """Build a config's segmentor on the CPU, in eval mode, and load a checkpoint into it.

    Args:
        cfg: is left as it is.
        checkpoint: a .pth file, slim or whole, or an adapter file. Without one the backbone's base
            weights are loaded and nothing else.

    Raises:
        FileNotFoundError: when a file is missing.
        CheckpointError: when it does not fit.
    """
    cfg = copy.deepcopy(cfg)
    replace_type(cfg.model, "SyncBN", "BN")
    init_default_scope(cfg.get("default_scope", "mmseg"))
    model = MODELS.build(cfg.model)
    meta = {}
    if checkpoint is None:
        model.backbone.init_weights()
    else:
        check_checkpoint(checkpoint, "checkpoint")
        allow_numpy_scalars()
        refuse_other_heads(model)
        meta = load_checkpoint(model, checkpoint, map_location="cpu").get("meta", {})
    model.cfg, model.dataset_meta = cfg, meta.get("dataset_meta")
    return model.eval()


def load_image(cfg: Config, image: str) -> dict:
    """A batch of one image file, taken through a config's test pipeline without its labels.

    Raises:
        FileNotFoundError: when there is no such file.
    """
    if not Path(image).is_file():
        raise FileNotFoundError(f"image not found: {image}")
    steps = cfg.get("test_pipeline") or cfg.test_dataloader.dataset.pipeline
    pipeline = Compose([step for step in steps if "Annotations" not in str(step["type"])])
    return pseudo_collate([pipeline(dict(img_path=str(image)))])


@torch.no_grad()
def logits(model: nn.Module, image: str | None = None, size: int = 512) -> torch.Tensor:
    """What a segmentor says of an image, (1, classes, H/s, W/s), before it is resized.

    Args:
        model: of :func:`build_segmentor`.
        image: a file; None for noise.
        size: side of the noise in pixels.
    """
    if image is None:
        noise = np.random.default_rng(0).integers(0, 256, (3, size, size), np.uint8)
        batch = dict(inputs=[torch.from_numpy(noise)])
    else:
        batch = load_image(model.cfg, image)
    return model(model.data_preprocessor(batch, False)["inputs"], mode="tensor")


def prepare(cfg: Config) -> None:
    """Run the function that a config names in ``prepare = 'module:function'``, if it does."""
    if cfg.get("prepare"):
        module, _, function = cfg.prepare.partition(":")
        getattr(importlib.import_module(module), function)(cfg)


def check_datasets(cfg: Config, *loaders: str) -> None:
    """See that the folders of the named dataloaders are there and hold images.

    Raises:
        FileNotFoundError: naming the folder and how to set it.
        ValueError: when a folder holds no file of the dataset's suffix, or a list is empty.
    """
    for loader in loaders:
        for dataset in _datasets(cfg.get(loader)):
            root = Path(dataset.get("data_root") or "")
            hint = f"set {loader}.dataset.data_root (--cfg-options) or prepare the data"
            listed = dataset.get("ann_file")
            if listed and not (root / listed).is_file():
                raise FileNotFoundError(f"data not found: {root / listed} (ann_file); {hint}")
            if listed and not (root / listed).read_text().strip():
                raise ValueError(f"empty dataset: {root / listed} lists no image; {hint}")
            for key, folder in dataset["data_prefix"].items():
                if folder is None:
                    continue
                if not (root / folder).is_dir():
                    raise FileNotFoundError(f"data not found: {root / folder} ({key}); {hint}")
                files = f"*{_suffix(dataset, key)}"
                if not listed and next((root / folder).rglob(files), None) is None:
                    raise ValueError(f"empty dataset: no {files} in {root / folder}; {hint}")


def _suffix(dataset: dict, prefix: str) -> str:
    """How the names of a dataset's images or label maps end, by its config or its class."""
    option = prefix.replace("_path", "_suffix")
    if option in dataset:
        return dataset[option]
    kind = dataset["type"]
    known = DATASETS.get(kind) if isinstance(kind, str) else kind
    parameters = {} if known is None else inspect.signature(known).parameters
    return parameters[option].default if option in parameters else ""


def _datasets(node) -> Iterator[dict]:
    """All configs of image folder datasets within a dataloader's config."""
    if isinstance(node, dict):
        if isinstance(node.get("data_prefix"), dict):
            yield node
        else:
            for value in node.values():
                yield from _datasets(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _datasets(value)


def fit_to_machine(cfg: Config, launcher: str) -> None:
    """Change what a config asks for to what this machine and launch mode can do.

    Without a GPU or without several processes SyncBN becomes BN; without a GPU the process group
    is gloo and mixed precision runs under CPU autocast.
    """
    cfg.launcher = launcher
    gpu = torch.cuda.is_available()
    if not gpu or launcher == "none":
        replace_type(cfg.get("model"), "SyncBN", "BN")
    if not gpu:
        if cfg.get("optim_wrapper", {}).get("type") == "AmpOptimWrapper":
            enable_amp(cfg)
        if launcher != "none":
            _use_gloo(cfg, launcher)


def replace_type(node, old: str, new: str) -> None:
    if isinstance(node, dict):
        if node.get("type") == old:
            node["type"] = new
        for value in node.values():
            replace_type(value, old, new)
    elif isinstance(node, (list, tuple)):
        for value in node:
            replace_type(value, old, new)


def _use_gloo(cfg: Config, launcher: str) -> None:
    """Start the process group here: mmengine's own start needs a GPU per process."""
    if launcher != "pytorch":
        raise ValueError(f"without a GPU only --launcher pytorch (torchrun) works, got {launcher}")
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo")
    cfg.setdefault("env_cfg", {}).update(dist_cfg=dict(backend="gloo"))
    cfg.model_wrapper_cfg = dict(
        type="MMDistributedDataParallel",
        device_ids=None,
        find_unused_parameters=cfg.get("find_unused_parameters", False),
    )


def leave_process_group() -> None:
    """End the process group before the interpreter ends: left to that, gloo's threads may abort."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def enable_amp(cfg: Config) -> None:
    """Train in mixed precision: fp16 with a dynamic loss scale on a GPU, bf16 on a CPU.

    Raises:
        ValueError: when the config's optimizer wrapper is one of its own.
    """
    wrapper = cfg.optim_wrapper
    if wrapper.get("type", "OptimWrapper") not in ("OptimWrapper", "AmpOptimWrapper"):
        raise ValueError(f"--amp needs optim_wrapper.type OptimWrapper, got {wrapper.type}")
    if torch.cuda.is_available():
        wrapper.type = "AmpOptimWrapper"
        wrapper.setdefault("loss_scale", "dynamic")
    else:
        wrapper.type = "CPUAmpOptimWrapper"
        wrapper.pop("loss_scale", None)
        wrapper.pop("dtype", None)


def allow_numpy_scalars() -> None:
    """Let torch's safe loading take the numpy values that mmengine puts into checkpoints."""
    if not hasattr(torch.serialization, "add_safe_globals"):  # torch < 2.4 has no need of it
        return
    dtypes = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "u1", "?")]
    reconstruct = np.core.multiarray if np.__version__ < "2" else np._core.multiarray
    torch.serialization.add_safe_globals(
        [*dtypes, np.dtype, np.ndarray, reconstruct._reconstruct, reconstruct.scalar]
    )


def plain_errors(main: Callable[[], None]) -> Callable[[], None]:
    """Let a tool end with one line and exit status 1 on errors that the user can mend.

    SNELLA_TRACEBACK=1 shows where they come from.
    """

    @functools.wraps(main)
    def wrapper() -> None:
        try:
            main()
        except Exception as error:
            if os.environ.get("SNELLA_TRACEBACK") or not _can_be_mended(error):
                raise
            lines = str(error).strip().splitlines() or [type(error).__name__]
            if "Original Traceback" in str(error):  # of a dataloader's worker
                lines = lines[-1:]
            print(f"error: {' '.join(lines)}", file=sys.stderr)
            sys.exit(1)

    return wrapper


def _can_be_mended(error: Exception) -> bool:
    """Whether an error tells of a wrong config, file or installation."""
    kinds = (FileNotFoundError, ImportError, ValueError, TypeError)
    of_ours = type(error).__module__.startswith("snella_seg.")  # CheckpointError and the like
    unknown_type = isinstance(error, KeyError) and "registry" in str(error)
    return isinstance(error, kinds) or of_ours or unknown_type
