"""Agreement with reference values, where the shared folder is at hand."""

import numpy as np
import pytest
import torch

from snella_seg.engine import DeltaBlock, adapted_linear
from snella_seg.functional import (
    DeltaRule,
    allocate_budget,
    budget_schedule,
    distance_kernel,
    ema_importance,
    importance_score,
    mixed_kernel,
    sparsify,
)

TOLERANCE = 1e-10


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "golden" / "snella_golden.npz")


def double(array):
    return torch.as_tensor(np.asarray(array), dtype=torch.float64)


def close(found, expected):
    expected = double(expected).reshape(found.shape)
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("fast", [False, True], ids=["autograd", "adapted_linear"])
def test_values_and_gradients(golden, fast):
    assert golden["num_cases"] > 0
    for n in range(int(golden["num_cases"])):
        case = {k.split("/")[1]: golden[k] for k in golden.files if k.startswith(f"case{n}/")}
        kernel, sparsity = str(case["kernel"]), float(case["sparsity"])
        names = ["in_factors", "out_factors"]
        names += ["alpha", "gamma", "beta"] if kernel == "mixed" else []
        params = [double(case[name]).requires_grad_() for name in names]
        x = double(case["x"]).requires_grad_()
        dense = {"mixed": mixed_kernel, "distance": distance_kernel}[kernel](*params)
        delta = sparsify(dense, sparsity)
        close(dense, case["dense_delta"])
        close(delta, case["delta"])
        if fast:
            block = DeltaBlock(0, len(delta), DeltaRule(kernel), sparsity, tuple(params))
            y = adapted_linear(x, torch.zeros_like(delta), None, [block])
        else:
            y = x @ delta.T
        close(y, case["y"])
        grads = torch.autograd.grad(y, [x, *params], double(case["grad_y"]))
        for name, grad in zip(["x", *names], grads, strict=True):
            close(grad, case[f"grad_{name}"])


def test_allocation_over_a_run(golden):
    for m in range(int(golden["num_allocs"])):
        case = {k[len(f"alloc{m}/") :]: golden[k] for k in golden.files if f"alloc{m}/" in k}
        sizes = case["layer_shapes_in_out"].prod(axis=1)
        epochs, length = int(case["epochs"]), int(case["iters_per_epoch"])
        betas = float(case["beta1"]), float(case["beta2"])
        initial = (1 - float(case["init_sparsity"])) * sizes.sum()
        target = (1 - float(case["target_sparsity"])) * sizes.sum()
        state = {}
        for t in range(epochs * length):
            epoch = t // length
            if t % length == 0 and epoch:
                budget = budget_schedule(epoch, epochs, initial, target)
                assert budget == int(case["budget_per_epoch"][epoch])
                scores = [
                    sum(float(importance_score(*state[layer, p])) for p in ("in", "out"))
                    for layer in range(len(sizes))
                ]
                shares = allocate_budget(scores, sizes, budget)
                expected = (1 - case["sparsity_per_epoch"][epoch]) * sizes
                assert shares.sum() == budget
                assert np.abs(shares - expected).max() <= 2 + 1e-6
            for layer in range(len(sizes)):
                for p in ("in", "out"):
                    value, grad = (
                        double(case[f"iter{t}/layer{layer}/{kind}{p}_factors"])
                        for kind in ("", "grad_")
                    )
                    zero = torch.zeros_like(value)
                    old = state.get((layer, p), (zero, zero))
                    state[layer, p] = ema_importance((value * grad).abs(), *old, *betas)
