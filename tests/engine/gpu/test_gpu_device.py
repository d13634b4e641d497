"""What only a GPU can show."""

import pytest
import torch
from gpu_matrices import make_params

from snella_seg.engine import gpu as fast
from snella_seg.functional import DeltaRule


def test_nothing_waits_for_the_gpu(gpu):
    params = make_params(130, 70, 2, 16, "mixed", gpu)
    grad = torch.randn(130, 70, device=gpu)

    def run():
        _, state = fast.launch_delta(params, DeltaRule(), 0.4)
        fast.launch_backward(params, DeltaRule(), state, grad, out=torch.empty_like(grad))

    run()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("outs, ins", [(8200, 4100), (66000, 33000)])
def test_large_matrices(outs, ins, gpu):
    """Above 2**24 and above 2**31 entries."""
    if torch.cuda.mem_get_info()[0] < 30 * outs * ins:
        pytest.skip("needs more free GPU memory")
    params = make_params(outs, ins, 2, 4, "distance", gpu)
    rule = DeltaRule("distance", "hard")
    delta, (threshold,) = fast.launch_delta(params, rule, 0.9)
    kept = sum(int((rows != 0).sum()) for rows in delta.split(4096))
    assert kept == pytest.approx(0.1 * outs * ins, rel=1e-3)
    p, q = (factor.double().requires_grad_() for factor in params)
    last, _ = rule((p, q[:, -64:]), 0.9, threshold.double())
    near = (last.abs() - threshold).abs() < 1e-6  # may fall on either side
    torch.testing.assert_close(delta[-64:][~near].double(), last[~near], rtol=0, atol=1e-6)
    grad = torch.zeros(outs, ins, device=gpu)
    grad[-64:] = torch.randn(64, ins, device=gpu) * ~near
    found = fast.launch_backward(params, rule, (threshold,), grad)
    exact = torch.autograd.grad(last, (p, q), grad[-64:].double())
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-5 * float(b.abs().max()))
