"""Ctrl-C and SIGTERM: the step is finished, a checkpoint written, the exit status right."""

import os
import signal
import subprocess
import sys

import pytest
from helpers import ROOT, history

SLIM = "default_hooks.checkpoint.type=SnellaCheckpointHook"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_goes_on_to_the_same_end(tool, tiny_config_file, tmp_path, number, status):
    whole = tool("train", tiny_config_file, "--work-dir", tmp_path / "a", "--cfg-options", SLIM)
    assert whole.code == 0
    config = tiny_config_file.with_name("stopped.py")
    (tmp_path / "stopping.py").write_text(
        "import os, signal\n"
        "from mmengine.hooks import Hook\n"
        "from mmengine.registry import HOOKS\n"
        "@HOOKS.register_module(force=True)\n"
        "class StopAtFive(Hook):\n"
        "    def before_train_iter(self, runner, batch_idx, data_batch=None):\n"
        "        if runner.iter == 4:\n"
        f"            os.kill(os.getpid(), {int(number)})\n"
    )
    config.write_text(
        f"_base_ = './{tiny_config_file.name}'\n"
        "custom_imports = dict(imports=['snella_seg.register', 'stopping'])\n"
        "custom_hooks = [dict(type='SparsityAllocationHook', target_sparsity=0.5, interval=2),\n"
        "                dict(type='StopAtFive')]\n"
    )
    command = [sys.executable, ROOT / "tools/train.py", config, "--work-dir", tmp_path / "b"]
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [*command, "--cfg-options", SLIM], capture_output=True, text=True, env=env, cwd=ROOT
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert "stopped after iteration 5 of 8; --resume goes on from here" in done.stdout + done.stderr
    assert (tmp_path / "b/last_checkpoint").read_text().endswith("iter_5.pth")
    again = tool(
        "train", tiny_config_file, "--work-dir", tmp_path / "b", "--resume", "--cfg-options", SLIM
    )
    assert again.code == 0, again.err
    assert history(tmp_path / "b") == history(tmp_path / "a")
