"""Where the numerical tests of the Triton kernels run."""

import pytest
import torch
from gpu_matrices import INTERPRETED

from snella_seg.engine.gpu import available


@pytest.fixture(scope="module")
def device() -> torch.device:
    if INTERPRETED:
        return torch.device("cpu")
    if torch.cuda.is_available() and available(torch.device("cuda")):
        return torch.device("cuda")
    pytest.skip("needs a GPU and Triton; test_in_the_interpreter runs this on the CPU")


@pytest.fixture
def gpu(device) -> torch.device:
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    return device
