"""Two runs in one work dir, one that cannot be written to, a disk that is full."""

import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from snella_seg.cli.work_dir import locked
from snella_seg.loading.files import AtomicBackend


def test_a_second_run_is_refused_in_a_line(tool, tiny_config_file, tmp_path):
    with locked(str(tmp_path / "run")):
        done = tool("train", tiny_config_file, "--work-dir", tmp_path / "run")
    assert done.code == 1
    line = done.err.strip().splitlines()[-1]
    assert line.startswith("error: ") and f"in use by another run (process {os.getpid()}" in line
    assert not list((tmp_path / "run").glob("*.pth"))


def test_a_crashed_run_bars_nobody(tool, tiny_config_file, tmp_path):
    crash = (
        "import os, sys; from snella_seg.cli.work_dir import locked\n"
        "with locked(sys.argv[1]): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", crash, tmp_path / "run"], check=False)
    assert (tmp_path / "run/.lock").is_file()
    assert tool("train", tiny_config_file, "--work-dir", tmp_path / "run").code == 0


def test_other_ranks_do_not_lock(tmp_path, monkeypatch):
    with locked(str(tmp_path)):
        monkeypatch.setenv("RANK", "1")
        with locked(str(tmp_path)):
            pass


def test_a_work_dir_that_cannot_be_made(tool, tiny_config_file, tmp_path):
    (tmp_path / "file").write_text("")
    done = tool("train", tiny_config_file, "--work-dir", tmp_path / "file" / "run")
    assert done.code == 1 and done.err.strip().splitlines()[-1].startswith("error: ")
    assert "is a file, where a folder is to be written to" in done.err


def test_a_full_disk_keeps_the_last_checkpoint(tool, tiny_config_file, tmp_path, monkeypatch):
    put, written = AtomicBackend.put, []

    def fill_up(self, obj, filepath):
        written.append(filepath)
        if len(written) == 2:
            raise OSError(28, "No space left on device", str(filepath))
        put(self, obj, filepath)

    monkeypatch.setattr(AtomicBackend, "put", fill_up)
    options = ("default_hooks.checkpoint.type=SnellaCheckpointHook",)
    limits = ("default_hooks.checkpoint.max_keep_ckpts=1",)
    done = tool(
        "train", tiny_config_file, "--work-dir", tmp_path, "--cfg-options", *options, *limits
    )
    assert done.code == 1 and "error: [Errno 28] No space left on device" in done.err
    assert [path.name for path in tmp_path.glob("*.pth*")] == ["iter_4.pth"]
    assert (tmp_path / "last_checkpoint").read_text().endswith("iter_4.pth")


def test_files_that_may_not_be_written(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError), locked(str(tmp_path / "run")):
        pass


def test_a_worker_that_lives_on_does_not_hold_the_lock(tmp_path):
    """A failed run's data loading workers end a moment after it."""
    context = multiprocessing.get_context("fork")
    with locked(str(tmp_path)):
        worker = context.Process(target=time.sleep, args=(60,), daemon=True)
        worker.start()
    try:
        with locked(str(tmp_path)):
            pass
        assert worker.is_alive()
    finally:
        worker.kill()
