"""Fitting a config to the machine and the launch mode."""

import gc

import torch
from mmengine.config import Config

from ..configs import replace_type, type_name


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
        if type_name(cfg.get("optim_wrapper")) == "AmpOptimWrapper":
            enable_amp(cfg)
        if launcher != "none":
            _use_gloo(cfg, launcher)


def _use_gloo(cfg: Config, launcher: str) -> None:
    """Start the process group here: mmengine's own start needs a GPU per process."""
    if launcher != "pytorch":
        raise ValueError(f"without a GPU only --launcher pytorch (torchrun) works, got {launcher}")
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo")
    asked = type_name(cfg.get("model_wrapper_cfg") or {}) or "MMDistributedDataParallel"
    if asked not in ("MMDistributedDataParallel", "SnellaFullyShard"):
        raise ValueError(
            f"model_wrapper_cfg asks for {asked}, which needs GPUs; without one leave it out, and "
            "processes work by MMDistributedDataParallel, or set its type to SnellaFullyShard to "
            "shard the frozen base"
        )
    cfg.setdefault("env_cfg", {}).update(dist_cfg=dict(backend="gloo"))
    cfg.model_wrapper_cfg = dict(
        type=asked,
        device_ids=None,
        find_unused_parameters=cfg.get("find_unused_parameters", False),
    )


def leave_process_group() -> None:
    """End the process group, and gloo's threads with it, before the interpreter ends.

    A thread that lets go of a step's tensors while the interpreter ends aborts the process. The
    threads end with the last thing that holds the group; models do, and they are part of cycles.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()


def enable_amp(cfg: Config) -> None:
    """Train in mixed precision: fp16 with a dynamic loss scale on a GPU, bf16 on a CPU.

    Raises:
        ValueError: when the config's optimizer wrapper is one of its own.
    """
    wrapper = cfg.optim_wrapper
    kind = type_name(wrapper) or "OptimWrapper"
    if kind not in ("OptimWrapper", "AmpOptimWrapper"):
        raise ValueError(f"--amp needs optim_wrapper.type OptimWrapper, got {kind}")
    if torch.cuda.is_available():
        wrapper.type = "AmpOptimWrapper"
        wrapper.setdefault("loss_scale", "dynamic")
    else:
        wrapper.type = "CPUAmpOptimWrapper"
        wrapper.pop("loss_scale", None)
        wrapper.pop("dtype", None)
