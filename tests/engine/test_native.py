"""The compiled weight side against the definition and plain torch."""

import os
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch

from snella_seg.engine import Bracket, self_check, tiles
from snella_seg.engine.blocks import DeltaBlock, Maker, makers
from snella_seg.engine.native import strips
from snella_seg.engine.native.matrix import NativeMatrix, write_delta
from snella_seg.engine.product import adapted_linear
from snella_seg.functional import DeltaRule

RULES = [
    DeltaRule(kernel, sparsifier)
    for kernel in ("mixed", "distance", "centred")
    for sparsifier in ("weighted", "normalised")
]
pytestmark = pytest.mark.usefixtures("compiler")
NAMES = [f"{r.kernel}-{r.sparsifier}" for r in RULES]


def params_of(rule, outs, ins, heads=2, width=16, spread=1.0):
    generator = torch.Generator().manual_seed(0)
    factors = [spread * torch.randn(heads, n, width, generator=generator) for n in (ins, outs)]
    scalars = [torch.tensor([v]) for v in (0.9, 0.7, 0.05)] if rule.kernel == "mixed" else []
    return tuple(p.requires_grad_() for p in (*factors, *scalars))


def step(params, rule, sparsity, tokens=9):
    """Output and gradients of an adapted product, by whatever makes its deltas now."""
    outs, ins = params[1].shape[1], params[0].shape[1]
    generator = torch.Generator().manual_seed(1)
    x, weight, grad = (
        torch.randn(size, generator=generator)
        for size in ((tokens, ins), (outs, ins), (tokens, outs))
    )
    x.requires_grad_()
    y = adapted_linear(x, weight, None, [DeltaBlock(0, outs, rule, sparsity, params)])
    return y.detach(), *torch.autograd.grad(y, (x, *params), grad)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_it_is_used_and_right(rule):
    assert self_check.native_reason(rule) is None
    assert makers([DeltaBlock(0, 5, rule, 0.5, params_of(rule, 5, 4))]) == [Maker.NATIVE]


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
@pytest.mark.parametrize("heads, width", [(1, 3), (2, 16), (3, 20)])
@pytest.mark.parametrize("sparsity", [0.0, 0.6, 0.995, 1.0])
def test_a_step_equals_that_of_plain_torch(rule, heads, width, sparsity, monkeypatch):
    params = params_of(rule, 37, 150, heads, width)
    found = step(params, rule, sparsity)
    monkeypatch.setenv("SNELLA_NATIVE", "0")
    assert makers([DeltaBlock(0, 37, rule, sparsity, params)]) == [Maker.TILES]
    for ours, theirs in zip(found, step(params, rule, sparsity), strict=True):
        scale = float(theirs.abs().max()) or 1.0
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("rule", RULES[::3], ids=NAMES[::3])
def test_gradients_against_double_precision(rule):
    """No worse than plain torch's, with factors as trained ones are and rows that coincide."""
    params = params_of(rule, 96, 64, spread=0.03)
    with torch.no_grad():
        params[1][:, :10] = params[0][:, :10] * (1 + 1e-5)
        params[1][:, 10] = params[0][:, 10]  # at distance zero the gradient is zero
    grad = torch.randn(96, 64, generator=torch.Generator().manual_seed(2))
    out = torch.empty(96, 64)
    plain = tuple(p.detach() for p in params)
    state = write_delta(plain, rule, 0.8, Bracket(), out)
    matrix = NativeMatrix(plain, rule, state)
    matrix.again(slice(0, 64), None, None, 1.0, lambda *_: grad)
    wide = tuple(p.detach().double().requires_grad_() for p in params)
    delta, _ = rule(wide, 0.8)
    right = torch.autograd.grad(delta, wide, grad.double())
    assert (out - delta).norm() <= 1e-5 * delta.norm()
    for ours, exact in zip(matrix.gradients((True,) * len(params)), right, strict=True):
        assert (ours.double() - exact).norm() <= 1e-4 * exact.norm()


@pytest.mark.parametrize("pool", [False, True], ids=["team", "pool"])
@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_the_same_bits_whatever_the_threads_and_tiles(rule, pool, monkeypatch):
    params = params_of(rule, 130, 600)
    if pool:  # as where torch's runtime is not GNU's
        monkeypatch.setattr("snella_seg.engine.native.strips._team", lambda: None)
    monkeypatch.setattr("snella_seg.engine.native.strips.SMALL", 1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = write_and_again(params, rule)
        torch.set_num_threads(3)
        shared = write_and_again(params, rule)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_every_job_is_done_and_a_failure_is_told():
    """A team may have fewer threads than there are jobs."""
    done = []
    jobs = [partial(lambda i: done.append(i) or i % 7 == 3, i) for i in range(40)]
    results = strips._share_out(jobs)
    assert sorted(done) == list(range(40)) and len(results) == 40
    assert [i for i, failed in enumerate(results) if failed] == [3, 10, 17, 24, 31, 38]


def write_and_again(params, rule):
    plain, out = tuple(p.detach() for p in params), torch.empty(130, 600)
    state = write_delta(plain, rule, 0.7, Bracket(), out)
    matrix, parts = NativeMatrix(plain, rule, state), (slice(0, 352), slice(352, 600))
    for part in parts:
        again = torch.empty_like(out[:, part])
        matrix.again(part, again, None, 1.0, lambda *_, part=part: out[:, part].cos())
        assert torch.equal(again, out[:, part])
    some = torch.tensor([3, 64, 65, 599])
    again = torch.empty(130, 4)
    matrix.again(some, again, None, 1.0, None)
    assert torch.equal(again, out[:, some])
    return out, *matrix.gradients((True,) * len(params))


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_the_threshold_is_exact_step_after_step(rule):
    params = tuple(p.detach() for p in params_of(rule, 70, 90))
    ours, theirs = Bracket(), Bracket()
    for turn in range(30):
        moved = (params[0] * (1 + 1e-3 * turn), *params[1:])
        out, plain = torch.empty(2, 70, 90)
        threshold, *_ = write_delta(moved, rule, 0.8, ours, out)
        tiles.write_delta(moved, rule, 0.8, theirs, plain)
        assert (out == 0).sum() == (plain == 0).sum()
        dense = rule.dense(moved)
        torch.testing.assert_close(threshold, rule.threshold(dense, 0.8), rtol=1e-5, atol=0)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
@pytest.mark.parametrize("base", [None, torch.arange(70 * 150.0).view(70, 150).cos()])
def test_what_is_written_ahead_of_the_threshold_is_the_same(rule, base):
    """The bracket may be unknown, right, at the edge, wide or wrong: no bit depends on it."""
    params = tuple(p.detach() for p in params_of(rule, 70, 150))
    out = torch.empty(70, 150)
    state = write_delta(params, rule, 0.8, Bracket(), out, base, 0.5)
    right = float(state[0])
    for expected, width in ((right, 1e-3), (right, 0.02), (right / 1.001, 1e-3), (right * 3, 0.02)):
        found = torch.empty(70, 150)
        bracket = Bracket(expected, 1.0, width)
        again = write_delta(params, rule, 0.8, bracket, found, base, 0.5)
        assert torch.equal(found, out) and bracket.threshold == right
        for ours, theirs in zip(again, state, strict=True):
            assert (ours is None and theirs is None) or torch.equal(
                ours.view(torch.int32), theirs.view(torch.int32)
            )


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_nan_is_passed_on(rule):
    params = tuple(p.detach().clone() for p in params_of(rule, 20, 70))
    params[0][0, 5, 3] = torch.nan
    out = torch.empty(20, 70)
    write_delta(params, rule, 0.0, Bracket(), out)
    assert out[:, 5].isnan().all()


def in_a_new_process(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


WHO = "from snella_seg.engine.self_check import native_finding; print(native_finding())"


def test_without_a_compiler_plain_torch_serves(tmp_path):
    assert "no C compiler" in in_a_new_process(WHO, PATH=str(tmp_path), CC="")


def test_a_compiler_that_fails_is_named(tmp_path):
    wrong = tmp_path / "cc"
    wrong.write_text("#!/bin/sh\necho out of order >&2\nexit 1\n")
    wrong.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    found = in_a_new_process(WHO, PATH=path, CC="", XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert "plain torch" in found and "out of order" in found
    assert not list((tmp_path / "cache/snella_seg").iterdir())


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_every_compiler_that_is_named_will_do(name, tmp_path):
    if shutil.which(name) is None:
        pytest.skip(f"no {name} here")
    assert "compiled here" in in_a_new_process(WHO, CC=name, XDG_CACHE_HOME=str(tmp_path))


def test_a_library_is_compiled_once(tmp_path):
    for _ in range(2):
        assert "compiled here" in in_a_new_process(WHO, XDG_CACHE_HOME=str(tmp_path))
        (file,) = (tmp_path / "snella_seg").iterdir()
    before = file.stat().st_mtime_ns
    in_a_new_process(WHO, XDG_CACHE_HOME=str(tmp_path))
    assert file.stat().st_mtime_ns == before


def test_what_errs_is_warned_of_and_not_used(monkeypatch):
    right = self_check.NATIVE

    def off(*args):
        made, state = right.make(*args)
        return made * 1.001, state

    wrong = self_check.Path(off, right.backward)
    monkeypatch.setattr(self_check, "_NATIVE_REASONS", {})
    monkeypatch.setattr(self_check, "NATIVE", wrong)
    with pytest.warns(UserWarning, match="compiled library is not used.*Plain torch"):
        assert self_check.native_reason(DeltaRule()) is not None
    assert makers([DeltaBlock(0, 5, DeltaRule(), 0.5, params_of(DeltaRule(), 5, 4))]) == [
        Maker.TILES
    ]
    assert not self_check.native_finding()[1]
