"""The allocation report: its parts, and the page of a real tiny run."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_tool, write_tiny_config
from PIL import Image

from snella_seg.lab.report import write_report
from snella_seg.lab.report.deltas import effective_rank, rank_holding
from snella_seg.lab.report.facts import _allocations
from snella_seg.lab.report.layout import lay_out
from snella_seg.lab.report.read_history import read_history

NAMES = ("backbone.layers.0.attn.attn.q", "backbone.layers.1.ffn.layers.0.0.fc1")
SIZES = (64, 256)


def line(epoch: int, counts=(32, 64), **changes) -> dict:
    """A line of a history, as the hook writes it."""

    def by_name(values):
        return dict(zip(NAMES, values, strict=True))

    later = epoch > 0
    written = {
        "epoch": epoch,
        "iter": 5 * epoch,
        "budget": sum(counts),
        "nonzero": by_name(counts),
        "sparsity": by_name(1 - n / size for n, size in zip(counts, SIZES, strict=True)),
        "score": by_name((1e-9, 3e-12)) if later else None,
        "norm": by_name((0.5, 0.25)),
        "entered": by_name((1, 2)) if later else None,
        "left": by_name((33, 194)) if later else None,
    }
    return {**written, **changes}


def write_history(folder: Path, *lines: dict, end: str = "") -> Path:
    text = "".join(json.dumps(record) + "\n" for record in lines)
    (folder / "sparsity_history.jsonl").write_text(text + end)
    return folder


def test_a_history_tells_which_reallocations_were_due(tmp_path):
    lines = [line(0, SIZES), line(1, due=True), line(2, due=False), line(3, due=True)]
    history = read_history(write_history(tmp_path, *lines))
    assert history.due.tolist() == [True, True, False, True]
    told = "3 after the start, every 5 iterations, the last at 15"
    assert _allocations(history) == f"{told}; 2 of them were due, at 5, 15"
    write_history(tmp_path, *lines[:2], line(2), line(3))  # as written before there was a choice
    assert _allocations(read_history(tmp_path)) == told


def test_a_history_becomes_arrays(tmp_path):
    history = read_history(write_history(tmp_path, line(0, SIZES), line(1)))
    assert history.names == NAMES and not history.cut_off
    assert history.sizes.tolist() == list(SIZES)
    assert history.epochs.tolist() == [0, 1] and history.iters.tolist() == [0, 5]
    assert history.period == 5
    assert history.budget.tolist() == [320, 96]
    assert history.density.tolist() == [[1, 1], [0.5, 0.25]]
    assert np.isnan(history.score[0]).all() and history.score[1].tolist() == [1e-9, 3e-12]
    assert np.isnan(history.entered[0]).all() and history.entered[1].tolist() == [1, 2]
    assert history.left[1].tolist() == [33, 194] and history.norm.shape == (2, 2)


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path):
    cut = json.dumps(line(2))[:100]
    history = read_history(write_history(tmp_path, line(0, SIZES), line(1), end=cut))
    assert history.cut_off and history.epochs.tolist() == [0, 1]


def test_an_old_history_lacks_norms_and_churn(tmp_path):
    lines = [line(0, SIZES), line(1)]
    for record in lines:
        for key in ("norm", "entered", "left"):
            del record[key]
    history = read_history(write_history(tmp_path, *lines))
    assert history.norm is history.entered is history.left is None
    page = write_report(tmp_path).read_text()
    assert "No picture of &#39;Churn&#39;" in page and "No config in the work dir" in page
    assert {p.stem for p in (tmp_path / "report").glob("*.png")} == {
        "density", "budget", "importance"
    }  # fmt: skip


def test_no_history(tmp_path):
    with pytest.raises(FileNotFoundError, match="SparsityAllocationHook writes it"):
        read_history(tmp_path)
    with pytest.raises(FileNotFoundError, match="work dir not found"):
        write_report(tmp_path / "nowhere")


def test_a_method_that_allocates_nothing(tmp_path):
    (tmp_path / "lora.py").write_text("model = dict(backbone=dict(method='lora'))")
    with pytest.raises(FileNotFoundError, match="LoRA, allocates no budget"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("lines", "end", "message"),
    [
        ([], "", "is empty"),
        ([], '{"epoch": 0', "line 1 is not JSON"),
        ([line(0, SIZES), {"epoch": 1}], "", "line 2 is no allocation: no iter, budget"),
        ([line(0, SIZES), line(1, budget=95)], "", "the budget is 95, but 96"),
        ([line(0, SIZES), line(1, norm={"other": 1.0})], "", "line 2: norm is not of the 2"),
        ([line(0, SIZES), line(1, nonzero={NAMES[0]: 96})], "", "line 2: nonzero is not of the 2"),
        ([line(1, SIZES), line(1)], "", "epochs do not grow"),
        ([line(0, SIZES), line(1, sparsity=line(0, SIZES)["sparsity"])], "", "does not fit"),
    ],
)
def test_histories_that_cannot_be_right(tmp_path, lines, end, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_history(write_history(tmp_path, *lines, end=end))


def test_names_become_blocks_and_kinds():
    swin = "backbone.backbone.stages."
    layout = lay_out(
        (
            f"{swin}0.blocks.0.attn.w_msa.qkv.v",
            f"{swin}0.blocks.1.ffn.layers.0.0.fc1",
            f"{swin}0.downsample.reduction.reduction",
            f"{swin}1.blocks.0.attn.w_msa.qkv.q",
        )
    )
    assert layout.blocks == ("0.0", "0.1", "0 (stage)", "1.0")
    assert layout.kinds == ("q", "v", "fc1", "reduction")
    assert layout.grid(np.arange(4.0))[1, 2] == 1 and np.isnan(layout.grid(np.arange(4.0))[0, 0])
    timm = "backbone.backbone.timm_model."
    assert lay_out((f"{timm}layers_2.blocks.5.attn.qkv.q",)).blocks == ("2.5",)
    layout = lay_out(tuple(f"{timm}blocks.{i}.attn.qkv.q" for i in range(12)))
    assert layout.blocks == tuple(map(str, range(12)))
    assert list(layout.by_depth()) == ["blocks 0 to 3", "blocks 4 to 7", "blocks 8 to 11"]
    layout = lay_out(("layers.0.self.q", "layers.0.cross.q", "layers.0.fc1", "head.fc.fc"))
    assert layout.kinds == ("fc1", "self.q", "cross.q", "fc")
    assert layout.blocks == ("layers.0", "head.fc")


def test_effective_rank_of_known_matrices():
    def of(matrix):
        values = torch.linalg.svdvals(matrix.double())
        return effective_rank(values), rank_holding(values)

    assert of(torch.eye(20)) == pytest.approx((20.0, 18))
    one = torch.outer(torch.arange(1.0, 9.0), torch.randn(5))
    assert of(one) == pytest.approx((1.0, 1))
    assert of(torch.zeros(4, 6)) == (0.0, 0)
    p = torch.tensor([0.75, 0.25]).double()  # singular values 3 and 1
    expected = float((-(p * p.log()).sum()).exp())
    assert of(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx((expected, 1))


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_dataset) -> Path:
    """The work dir of a tiny run of four allocations."""
    folder = tmp_path_factory.mktemp("run")
    config = write_tiny_config(folder, tiny_dataset)
    assert run_tool("train", config, "--work-dir", folder / "work") == 0
    return folder / "work"


def test_the_report_of_a_run(run, tool):
    done = tool("report", run)
    assert done.code == 0 and f"report: {run / 'report' / 'index.html'}" in done.out
    pictures = sorted((run / "report").glob("*.png"))
    assert [p.stem for p in pictures] == [
        "budget", "churn", "density", "effective_rank", "importance", "norm", "relative_norm"
    ]  # fmt: skip
    for picture in pictures:
        with Image.open(picture) as image:
            assert len(image.convert("RGB").getcolors(1 << 20)) > 8, picture
        assert picture.stat().st_size < 200_000
    page = (run / "report" / "index.html").read_text()
    assert page.count('src="data:image/png;base64,') == len(pictures) == page.count("<img ")
    outside = r"(?:src|href)=[\"'](?!data:)|https?://|@import|url\("
    assert re.search(outside, page) is None
    text = (run / "report" / "report.md").read_text()
    assert "met by all 4 allocations" in text and "iter_8.pth, sparsities of epoch 3" in text
    assert all(f"]({picture.name})" in text for picture in pictures)
    assert "| fc2 | 2 | 8,192 |" in text and "Note:" not in text


def test_the_page_holds_the_history(run):
    page = write_report(run).read_text()
    data = re.search(r'<script type="application/json" id="history">(.*?)</script>', page, re.S)
    embedded = json.loads(data.group(1))
    lines = [json.loads(t) for t in (run / "sparsity_history.jsonl").read_text().splitlines()]
    assert embedded["names"] == list(lines[0]["nonzero"])
    for key, plural in (("epoch", "epochs"), ("iter", "iters"), ("budget", "budget")):
        assert embedded[plural] == [record[key] for record in lines]
    nothing = dict.fromkeys(embedded["names"])
    for key in ("nonzero", "score", "norm", "entered", "left"):
        given = [record[key] or nothing for record in lines]
        assert embedded[key] == [[g[name] for name in embedded["names"]] for g in given]


def test_what_is_missing_or_off_is_said(run, tmp_path, tool):
    lines = [json.loads(t) for t in (run / "sparsity_history.jsonl").read_text().splitlines()]
    name = next(iter(lines[2]["nonzero"]))
    size = round(lines[0]["nonzero"][name] / (1 - lines[0]["sparsity"][name]))
    lines[2]["budget"] -= 7
    lines[2]["nonzero"][name] -= 7
    lines[2]["sparsity"][name] = 1 - lines[2]["nonzero"][name] / size
    write_history(tmp_path, *lines)
    shutil.copy(run / "tiny.py", tmp_path)
    done = tool("report", tmp_path, "--out", tmp_path / "elsewhere")
    text = (tmp_path / "elsewhere" / "report.md").read_text()
    assert done.code == 0 and not (tmp_path / "report").exists()
    assert "differs in 1 of 4 allocations, most in epoch 2, by -7 weights" in text
    assert "Note: 1 budget is off the schedule" in text
    assert "Note: No whole checkpoint in the work dir" in text
    assert not (tmp_path / "elsewhere" / "effective_rank.png").exists()
    done = tool("report", tmp_path, "--checkpoint", tmp_path / "nothing.pth")
    assert done.code == 1 and done.err.count("\n") == 1 and "checkpoint not found" in done.err


def test_scalars_reach_tensorboard(tiny_config_file, tmp_path, tool):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tmp_path / "with_tensorboard.py"
    config.write_text(
        "_base_ = './tiny.py'\n"
        "visualizer = dict(vis_backends=[dict(type='TensorboardVisBackend')])\n"
        "train_cfg = dict(max_iters=4, val_interval=100)\n"
    )
    assert tool("train", config, "--work-dir", tmp_path / "work").code == 0
    events = EventAccumulator(str(next(tmp_path.glob("work/*/vis_data/events.*"))))
    events.Reload()
    history = read_history(tmp_path / "work")
    budgets = {e.step: e.value for e in events.Scalars("snella/budget")}
    assert budgets == dict(zip(history.iters.tolist(), history.budget.tolist(), strict=True))
    assert {"snella/churn", "snella/sparsity_q"} <= set(events.Tags()["scalars"])
