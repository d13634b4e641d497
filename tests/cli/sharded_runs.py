"""Runs of tools/train.py in the same processes, for test_fully_shard.py.

``torchrun --nproc_per_node=2 sharded_runs.py RUNS``, with RUNS as JSON: name -> config, options.
"""

import gc
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from helpers import run_tool
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import nn

import snella_seg.cli.train
from snella_seg.models import find_wrapper


@HOOKS.register_module()
class SaveRank(Hook):
    """Writes what each process has held and computed: losses, bytes of the base, what trains."""

    priority = "LOWEST"

    def before_train(self, runner) -> None:
        self.losses, self.frozen, self.unaccounted = [], [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.losses.append(float(outputs["loss"]))
        wrapper = find_wrapper(runner.model)[1]
        frozen = [p.detach() for p in wrapper.backbone.parameters() if not p.requires_grad]
        shares = storages(p.to_local() if hasattr(p, "to_local") else p for p in frozen)
        gc.collect()
        others = (t for t in gc.get_objects() if type(t) is nn.Parameter and not t.requires_grad)
        self.frozen.append(sum(shares.values()))
        self.unaccounted.append(sum((storages(others) | shares).values()) - sum(shares.values()))

    def after_train(self, runner) -> None:
        model = runner.model.module
        found = {
            "losses": self.losses,
            "frozen": self.frozen,
            "unaccounted": self.unaccounted,
            "task": {
                **{n: p.detach() for n, p in model.named_parameters() if p.requires_grad},
                **{n: b for n, b in model.named_buffers() if n.endswith(".sparsity")},
            },
        }
        torch.save(found, f"{runner.work_dir}/rank{get_rank()}.pth")


def storages(tensors) -> dict[int, int]:
    """Address -> bytes of the memory behind tensors; freed memory has none."""
    found = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in found if storage.nbytes()}


def main() -> None:
    runs = json.loads(sys.argv[1])
    dist.init_process_group("gloo")
    leave_process_group = snella_seg.cli.train.leave_process_group
    snella_seg.cli.train.leave_process_group = lambda: None  # one group for all runs
    codes = [
        run_tool(
            *("train", config, "--work-dir", Path(config).with_name(name)),
            *("--launcher", "pytorch", *options),
        )
        for name, (config, *options) in runs.items()
    ]
    dist.barrier()
    leave_process_group()
    sys.exit(max(codes))


if __name__ == "__main__":
    main()
