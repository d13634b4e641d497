"""The benchmarks' baselines compute what they claim to, and the scripts run."""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from helpers import import_peft
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

pytest.importorskip("mmseg")
pytest.importorskip("matplotlib")

import attention  # noqa: E402
import baselines  # noqa: E402
import cases  # noqa: E402
import measure  # noqa: E402
import report  # noqa: E402
from mmseg.models.backbones.swin import SwinBlock  # noqa: E402
from variants import VARIANTS, tune  # noqa: E402

from snella_seg.inject import add_adapters, list_adapters  # noqa: E402


def pair(dtype, sparsity=0.9):
    """The reference's layer and ours, with the same weights, factors and scalars."""
    torch.manual_seed(0)
    base = nn.Linear(24, 40).to(dtype).requires_grad_(False)
    ours = nn.Sequential(copy.deepcopy(base))
    reference = baselines.ReferenceLinear(base, rank=8, sparsity=sparsity)
    add_adapters(ours, dict(rank=8, initial_sparsity=sparsity), targets=["*"])
    (adapter,) = list_adapters(ours).values()
    adapter.to(dtype)
    names = ("in_factors", "out_factors", "alpha", "gamma", "beta")
    with torch.no_grad():
        reference.alpha.fill_(0.7), reference.gamma.fill_(1.3), reference.beta.fill_(0.01)
        for name in names:
            getattr(adapter, name).copy_(getattr(reference, name))
    return reference, ours, [(getattr(reference, n), getattr(adapter, n)) for n in names]


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
@pytest.mark.parametrize(("sparsity", "reentrant"), [(0.0, False), (0.9, False), (0.9, True)])
def test_reference_layer_computes_what_ours_does(dtype, rtol, sparsity, reentrant):
    reference, ours, parameters = pair(dtype, sparsity)
    reference.reentrant = reentrant
    x = torch.randn(2, 7, 24, dtype=dtype)
    grad = torch.randn(2, 7, 40, dtype=dtype)
    results = []
    for model in (reference, ours):
        leaf = x.clone().requires_grad_(True)
        y = model(leaf)
        y.backward(grad)
        results.append((y, leaf.grad))
    wanted = [*zip(*results, strict=True), *((a.grad, b.grad) for a, b in parameters)]
    for expected, found in wanted:
        largest = expected.detach().abs().max().item()
        torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * largest)


def test_reference_layer_drops_out_in_training_only():
    base = nn.Linear(8, 8)
    layer = baselines.ReferenceLinear(base, rank=2, dropout=0.5, drop_path=0.5)
    x = torch.randn(64, 3, 8)
    without_branch = (layer(x) == base(x)).all(dim=(1, 2))
    assert 10 < without_branch.sum() < 54  # about half of the samples lose the branch
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    assert not (layer(x) == base(x)).all(dim=(1, 2)).any()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_written_out_attention_of_vit(fused, packed):
    stock = cases.make_blocks(16, 2, 32).eval()
    plain = attention.plain_attention(copy.deepcopy(stock), fused, packed)
    assert_same(stock, plain, torch.randn(2, 9, 16))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("shift", [True, False])
def test_written_out_attention_of_swin(fused, packed, shift):
    stock = cases.fill_zeros(SwinBlock(16, 2, 32, window_size=4, shift=shift)).eval()
    plain = attention.plain_attention(copy.deepcopy(stock), fused, packed)
    for images in (1, 2):  # of 8x6, padded to 8x8: four windows, masked if shifted
        assert_same(stock, plain, torch.randn(images, 8 * 6, 16), (8, 6))


def assert_same(stock, plain, x, *more):
    """Two modules give the same output and the same gradient of their input."""
    leaves = [x.clone().requires_grad_(True) for _ in range(2)]
    outputs = [m(leaf, *more) for m, leaf in zip((stock, plain), leaves, strict=True)]
    grad = torch.randn_like(outputs[0])
    for y in outputs:
        y.backward(grad)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(leaves[1].grad, leaves[0].grad, rtol=1e-4, atol=1e-5)


def test_lora_is_at_the_same_sites_and_nothing_else_trains():
    import_peft()
    stock = cases.make_blocks(16, 2, 32)
    setting = cases.Setting(torch.device("cpu"), rank=2, tokens=5)
    model = tune(copy.deepcopy(stock), VARIANTS["lora"], setting.rank)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    sites = {n.split(".lora_")[0] for n in trained}
    inside = ("attn.attn.q", "attn.attn.k", "attn.attn.v", "attn.attn.proj")
    assert sites == {f"0.{s}" for s in (*inside, "ffn.layers.0.0", "ffn.layers.1")}
    assert all((p != 0).any() for n, p in model.named_parameters() if n in trained)
    ours = tune(copy.deepcopy(stock), VARIANTS["merged"], setting.rank)
    assert len(list_adapters(ours)) == len(sites)


def test_saved_bytes_count_each_storage_once_without_parameters_and_inputs():
    weight = nn.Linear(8, 4, bias=False)
    x = torch.randn(3, 8, requires_grad=True)

    def forward():
        y = weight(x).exp()  # exp saves its output (48 bytes); the product saves x and the weight
        return (y * y,)  # saves y twice again

    case = measure.Case("a", "a", forward, None, None, [weight], [x])
    assert measure.saved_bytes(case) == 3 * 4 * 4


def test_peak_is_replayed():
    x = torch.randn(1000, requires_grad=True)

    def backward(y):
        torch.autograd.backward(y, torch.ones_like(y))

    def finish():
        x.grad = None

    case = measure.Case("a", "a", lambda: (x * 2).exp(), backward, finish, [], [x])
    peak, held = measure.peak_bytes(case, torch.device("cpu"))
    assert held == pytest.approx(4000, abs=64)  # exp's output, which it saves
    # that, the incoming gradient, one product with it, and one more at most
    assert 3 * 4000 - 64 <= peak <= 4 * 4000 + 64


def test_times_are_related_round_by_round():
    times = dict(reference=[8, 8, 8], lora=[2, 4, 8], full=[4, 4, 4], frozen=[1, 1, 2])
    rows = [dict(key=key, label=key, times=found) for key, found in times.items()]
    measure.compare(rows)
    lora = rows[1]
    assert (lora["ratio"], lora["over_lora"], lora["over_full"]) == (0.5, 1.0, 1.0)
    assert lora["over_frozen"] == 300
    assert "over_lora" not in report.table_text(["label", "over_lora"], [dict(label="x")])


def test_a_failing_row_says_so_and_the_others_are_measured(monkeypatch):
    def refuse(*_):
        raise RuntimeError("quantile() input tensor is too large")

    monkeypatch.setattr(torch, "quantile", refuse)
    setting = cases.Setting(torch.device("cpu"), rank=2, tokens=5)
    made = [
        cases.linear_case("fc1", (8, 8), VARIANTS[key], key, setting)
        for key in ("reference", "full")
    ]
    rows = measure.measure(made, 2, setting.device, log=lambda text: None)
    measure.compare(rows)
    assert rows[1]["ms"] > 0 and "ms" not in rows[0] and "over_lora" not in rows[1]
    text = report.table_text(["label", "ms", "over_full"], rows)
    assert "fails: RuntimeError: quantile() input tensor is too large" in text


@pytest.mark.parametrize("peft", [True, False])
def test_step_runs_end_to_end(tmp_path, tool, monkeypatch, peft):
    """Sections add up in one file; without peft the LoRA rows are missing, with a reason."""
    if peft:
        import_peft()
    else:
        monkeypatch.setattr(baselines.importlib.util, "find_spec", lambda name: None)
    sections = ["model", "overhead"] if peft else ["block"]
    options = ["--smoke", "--device", "cpu", "--out", tmp_path, "--models", "swin_t"]
    options += [
        "--sections",
        *sections,
        "--variants",
        "reference",
        "merged",
        "lora",
        "lora_ours",
        "frozen",
    ]
    done = tool("../benchmarks/step", *options)
    assert done.code == 0, done.err
    text = (tmp_path / "step_cpu.md").read_text()
    assert ("LoRA (peft), SDPA" in text) == peft and "LoRA, ours, SDPA" in text
    assert ("peft is not installed" in text) == (not peft)
    assert "torch " + torch.__version__.split("+")[0] in text and "fails" not in text
    tables = json.loads((tmp_path / "step_cpu.json").read_text())["tables"]
    assert len(tables) == len(sections)


def test_another_run_adds_to_the_same_file(tmp_path):
    def add(name, ms):
        made = report.Report(tmp_path, "step_cpu", "Title", "Intro", torch.device("cpu"))
        made.add("One layer", name, ["label", "ms"], [dict(label="a", ms=ms, ms_low=1, ms_high=3)])

    for name, ms in (("first", 2.0), ("second", 2.5), ("first", 2.25)):
        add(name, ms)
    text = (tmp_path / "step_cpu.md").read_text()
    assert "| a | 2.25 (1.00-3.00) |" in text and "| a | 2.50" in text and "2.00 (" not in text


def test_comparisons_are_pooled_by_seed(tmp_path, capsys, monkeypatch):
    import pooled

    scores = {"day": ([3.0, 5.0], [2.0, 3.0]), "night": ([7.0, 8.0], [7.0, 9.0])}
    for name, methods in scores.items():
        runs = [
            dict(method=method, seed=seed, mIoU=value)
            for method, values in zip(("snella_v2", "lora"), methods, strict=True)
            for seed, value in enumerate(values)
        ]
        (tmp_path / name).mkdir()
        (tmp_path / name / "study.json").write_text(json.dumps({"runs": runs}))
    folders = [str(tmp_path / name) for name in scores]
    monkeypatch.setattr(sys, "argv", ["pooled.py", *folders, "--runs", str(tmp_path / "runs.json")])
    pooled.main()
    written = json.loads((tmp_path / "runs.json").read_text())
    assert [(r["ground"], r["method"], r["seed"], r["mIoU"]) for r in written][-2:] == [
        ("night", "lora", 0, 7.0), ("night", "lora", 1, 9.0)
    ]  # fmt: skip
    out = capsys.readouterr().out
    # differences 1, 2 and 0, -1; by seed .5 and .5
    assert "| day | +1.50 | -4.85 to +7.85 | 2 |" in out
    assert "| all, seeds as units | +0.50 | +0.50 to +0.50 | |" in out
    monkeypatch.setattr(sys, "argv", ["pooled.py", *folders, "--methods", "snella_v2", "full"])
    with pytest.raises(SystemExit):
        pooled.main()
    assert "full is none of its methods" in capsys.readouterr().err
