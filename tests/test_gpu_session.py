"""benchmarks/gpu.sh: it goes on after a failure, and its checks run without a GPU."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from snella_seg.engine.gpu.language import triton

ROOT = Path(__file__).resolve().parents[1]
FAKE = """#!/bin/sh
case "$*" in *"gpu_checks.py bits"*) echo broken; exit 3;; esac
echo "$TRITON_INTERPRET:$TORCH_ALLOW_TF32_CUBLAS_OVERRIDE:$*"
"""


@pytest.mark.skipif(not shutil.which("bash") or not shutil.which("timeout"), reason="needs bash")
def test_a_failure_ends_no_other_step(tmp_path):
    python = tmp_path / "python"
    python.write_text(FAKE)
    python.chmod(0o755)
    command = ["bash", ROOT / "benchmarks/gpu.sh", "--dry-run", tmp_path / "out"]
    done = subprocess.run(command, env={**os.environ, "PYTHON": str(python)}, capture_output=True)
    assert done.returncode == 1
    lines = (tmp_path / "out/summary.txt").read_text().splitlines()
    words = {line.split()[0]: line.split()[1] for line in lines}
    assert words.pop("bits") == "FAILED" and set(words.values()) == {"ok"}
    assert len(words) == 15
    logs = {path.stem: path.read_text() for path in (tmp_path / "out").glob("*.log")}
    assert logs["bits"] == "broken\n" and logs["masks"].startswith("1:")
    assert [logs[f"step_{kind}"].split(":")[1] for kind in ("fp32", "tf32", "bf16")] == list("010")
    assert "--dtype amp" in logs["model_bf16"] and "--dtype fp32" in logs["model_tf32"]


@pytest.mark.skipif(triton is None, reason="needs Triton")
@pytest.mark.parametrize("check", ["masks", "bits", "index"])
def test_checks_run_in_the_interpreter(check):
    settings = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, ROOT / "benchmarks/gpu_checks.py", check, "--dry-run"]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        "skipped" if check == "index" else "agree" if check == "masks" else "twice"
    ) in done.stdout


@pytest.mark.skipif(triton is None, reason="needs Triton")
def test_a_block_takes_fewer_launches_than_lora():
    command = [sys.executable, ROOT / "benchmarks/launches.py"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    launches = {name: int(whole) for name, *_, whole in rows}
    assert max(launches[name] for name in ("snella", "snella_v2")) < launches["LoRA of ours"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_checks_without_a_gpu_end_in_a_line():
    command = [sys.executable, ROOT / "benchmarks/gpu_checks.py", "masks"]
    settings = {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": ""}
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: Triton cannot run on cuda")
