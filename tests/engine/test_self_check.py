"""The comparison at the first use on a device; here the paths of a CPU stand in for a GPU's."""

import warnings

import pytest
import torch

from snella_seg.engine import gpu, self_check
from snella_seg.engine.self_check import Path, disagreement
from snella_seg.engine.whole_delta import whole_backward, write_whole
from snella_seg.functional import DeltaRule

CPU = torch.device("cpu")
RULES = [DeltaRule(), DeltaRule("centred", "normalised"), DeltaRule("distance", "soft")]


def make(params, rule, sparsity, base):
    out = torch.empty_like(base)
    return out, write_whole(params, rule, sparsity, out, base)


def backward(params, rule, state, grad, base):
    out = torch.empty_like(base)
    return out, tuple(whole_backward(params, rule, state, grad, (True,) * len(params), base, out))


GOOD = Path(make, backward)


def off_by_a_little(params, rule, sparsity, base):
    made, state = make(params, rule, sparsity, base)
    return made * 1.001, state


def another_threshold(params, rule, state, grad, base):
    return backward(params, rule, (state[0] * 0.9,), grad, base)


def all_take_part(params, rule, state, grad, base):
    made, _ = backward(params, rule, state, grad, base)
    return made, backward(params, rule, (torch.zeros(()),), grad, base)[1]


def wrong_gradient(params, rule, state, grad, base):
    made, (first, second, *rest) = backward(params, rule, state, grad, base)
    return made, (first, second * 1.01, *rest)


def never_the_same(params, rule, state, grad, base):
    made, (first, *rest) = backward(params, rule, state, grad, base)
    return made, (first * (1 + 1e-6 * torch.rand_like(first)), *rest)


def does_not_compile(*args):
    raise RuntimeError("PTX was compiled with an unsupported toolchain")


FAULTS = [
    (Path(off_by_a_little, backward), "backward makes another delta"),
    (Path(make, another_threshold), "backward makes another delta"),
    (Path(make, all_take_part), "weights that take no part have a gradient"),
    (Path(make, wrong_gradient), "the gradient of out_factors is off by"),
    (Path(make, never_the_same), "not the same bits twice"),
    (Path(does_not_compile, backward), "RuntimeError: PTX was compiled"),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_what_is_right_passes(rule):
    before = torch.get_rng_state()
    assert disagreement(GOOD, rule, CPU) is None
    assert torch.equal(before, torch.get_rng_state())  # the run's own draws stay what they are


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_defaults_of_the_caller_do_not_count(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        assert disagreement(GOOD, DeltaRule(), CPU) is None
    finally:
        torch.set_default_dtype(before)


def test_memory_that_runs_out_says_nothing_of_a_path():
    def runs_out(*args):
        raise torch.cuda.OutOfMemoryError("out of memory")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        disagreement(Path(runs_out, backward), DeltaRule(), CPU)


@pytest.mark.parametrize("path, message", FAULTS)
@pytest.mark.parametrize("rule", RULES[:2], ids=str)
def test_what_is_wrong_is_told(path, message, rule):
    assert disagreement(path, rule, CPU).startswith(message)


def test_values_are_compared_with_the_definition():
    def both(params, rule, state, grad, base):
        made, grads = backward(params, rule, state, grad, base)
        return made * 1.001, grads

    found = disagreement(Path(off_by_a_little, both), DeltaRule(), CPU)
    assert found.startswith("the delta is off by")


def test_a_device_that_fails_is_warned_of_once(monkeypatch):
    monkeypatch.setattr(self_check, "_REASONS", {})
    monkeypatch.setattr(self_check, "TRITON", Path(does_not_compile, backward))
    with pytest.warns(UserWarning, match="not used on cpu.*unsupported toolchain.*plain form"):
        reason = self_check.triton_reason(DeltaRule(), CPU)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert self_check.triton_reason(DeltaRule(), CPU) == reason


@pytest.mark.skipif(not gpu.available(CPU), reason="needs Triton's interpreter")
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_kernels_themselves_in_the_interpreter(rule):
    assert disagreement(self_check.TRITON, rule, CPU) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_kernels_themselves_on_a_gpu(rule):
    if not gpu.available(torch.device("cuda")):
        pytest.skip("needs Triton")
    assert self_check.triton_reason(rule, torch.device("cuda", 0)) is None
