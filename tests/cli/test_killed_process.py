"""One of two processes is killed in training: the other ends, and the run can go on."""

import os
import socket
import subprocess
import sys

import pytest
from helpers import ROOT, history

KILLER = """
import os
import signal

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class KillProcess(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if get_rank() == 1 and runner.iter == 6:
            os.kill(os.getpid(), signal.SIGKILL)
"""
CONFIG = """
_base_ = './tiny.py'
custom_imports = dict(imports=["snella_seg.register", "killer"])
custom_hooks = [
    dict(type="SparsityAllocationHook", target_sparsity=0.5, interval=2),
    dict(type="KillProcess"),
]
default_hooks = dict(checkpoint=dict(type="SnellaCheckpointHook"))
train_cfg = dict(val_interval=100)
"""


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return str(listener.getsockname()[1])


@pytest.mark.skipif("SNELLA_PROCESSES" not in os.environ, reason="SNELLA_PROCESSES=2 runs it")
def test_the_others_end_and_the_last_checkpoint_resumes(tool, tiny_config_file, tmp_path):
    """No launcher watches over these two, as torchrun would: the survivor ends of itself."""
    config, work_dir = tmp_path / "killed.py", tmp_path / "run"
    config.write_text(CONFIG)
    (tmp_path / "killer.py").write_text(KILLER)
    environment = dict(
        os.environ,
        OMP_NUM_THREADS="1",
        PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}",
        CUDA_VISIBLE_DEVICES="",
        WORLD_SIZE="2",
        MASTER_ADDR="localhost",
        MASTER_PORT=free_port(),
    )
    command = (sys.executable, ROOT / "tools/train.py", config, "--work-dir", work_dir)
    ranks = [
        subprocess.Popen(
            [*map(str, command), "--launcher", "pytorch"],
            env=environment | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        ranks[1].wait(timeout=120)
        _, said = ranks[0].communicate(timeout=60)
    finally:
        for process in ranks:
            process.kill()
    assert ranks[1].returncode == -9
    assert ranks[0].returncode == 1 and said.strip().splitlines()[-1].startswith("error: ")
    assert [path.name for path in work_dir.glob("iter_*.pth*")] == ["iter_4.pth"]

    longer = ("--cfg-options", "train_cfg.max_iters=12")
    done = tool("train", tiny_config_file, "--work-dir", work_dir, "--resume", *longer)
    assert done.code == 0, done.err
    # One process has half the images of two, so that reallocations are twice as many steps apart.
    assert [line["iter"] for line in history(work_dir)] == [0, 2, 4, 8]
