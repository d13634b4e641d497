"""In which precision products run, whichever of torch's settings says so."""

import pytest
import torch
from torch import nn

from snella_seg.engine.precision import merging_loses_deltas, reduces_single_precision
from snella_seg.inject import add_adapters

MATMUL = getattr(torch.backends.mkldnn, "matmul", None)
needs_new_settings = pytest.mark.skipif(
    not hasattr(MATMUL, "fp32_precision"), reason="needs torch 2.9's fp32_precision"
)


@pytest.fixture
def settings():
    """torch's settings as they were, afterwards."""
    backends = [torch.backends.cuda.matmul, MATMUL]
    before = [backend.fp32_precision for backend in backends]
    yield
    for backend, value in zip(backends, before, strict=True):
        backend.fp32_precision = value


def layer() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 4))
    add_adapters(model, dict(rank=2), ["0"])
    return model


@needs_new_settings
def test_forward_runs_after_the_newer_settings_were_used(settings):
    """Reading the older settings then is an error of torch's."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    layer()(torch.randn(3, 6)).sum().backward()
    assert reduces_single_precision("cuda")
    assert not reduces_single_precision("cpu")
    assert not merging_loses_deltas(torch.zeros(2, 2))


@needs_new_settings
@pytest.mark.parametrize("value", ["bf16", "tf32"])
def test_reduced_products_on_a_cpu_are_seen(settings, value):
    MATMUL.fp32_precision = value
    assert merging_loses_deltas(torch.zeros(2, 2))
    assert not merging_loses_deltas(torch.zeros(2, 2, dtype=torch.float64))
    MATMUL.fp32_precision = "ieee"
    assert not merging_loses_deltas(torch.zeros(2, 2))
