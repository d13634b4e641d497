"""Fixtures: a tiny dataset and config, the tools in this process, the shared data folder."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers import ENDINGS, ROOT, run_tool, write_dataset, write_tiny_config


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """Two, here and in the tools that tests start; one where tests run side by side."""
    count = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
    os.environ.setdefault("OMP_NUM_THREADS", count)
    torch.set_num_threads(min(int(count), torch.get_num_threads()))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and reference values; tests that need it skip without it."""
    folder = Path(os.environ.get("SNELLA_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs the shared data folder (SNELLA_SHARED), not at {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> Path:
    """Root of a dataset of 4 classes that the colour tells apart."""
    root = tmp_path_factory.mktemp("data")
    write_dataset(root)
    return root


@pytest.fixture
def tiny_config_file(tmp_path, tiny_dataset) -> Path:
    """The config of ``tiny_config.py`` on that dataset, as a file."""
    return write_tiny_config(tmp_path, tiny_dataset)


class Outcome(NamedTuple):
    """How a tool ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def tool(capsys) -> Callable[..., Outcome]:
    """``tool('train', config, '--amp')`` runs ``tools/train.py`` within this process."""

    def run(name: str, *args) -> Outcome:
        capsys.readouterr()
        try:
            code, trace = run_tool(name, *args), ""
        except Exception:  # as it would reach a user
            code, trace = 1, traceback.format_exc()
        out, err = capsys.readouterr()
        return Outcome(code, out, err + trace)

    return run


def pytest_terminal_summary(terminalreporter) -> None:
    """The count of bad inputs, as docs/reliability.md has it."""
    if ENDINGS:
        endings = ", ".join(f"{count} {ending}" for ending, count in ENDINGS.most_common())
        terminalreporter.write_line(f"bad inputs: {ENDINGS.total()} tried, {endings}")


@pytest.fixture
def compiler():
    """Skips where the C library cannot be had."""
    from snella_seg.engine import native

    try:
        native.library()
    except native.Unavailable as reason:
        pytest.skip(str(reason))
