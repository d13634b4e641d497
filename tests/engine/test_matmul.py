"""Products taken as convolutions: the same numbers, and where they are not taken so."""

import pytest
import torch
import torch.nn.functional as F

from snella_seg.engine import DeltaBlock, adapted_linear, matmul, processor
from snella_seg.functional import DeltaRule

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")


@pytest.fixture
def convolutions(monkeypatch):
    """Convolutions for all products that have a divisor, and a list of those that were taken."""
    torch.manual_seed(0)
    taken = []
    pixels = matmul._pixels

    def counted(x):
        taken.append(tuple(x.shape))
        return pixels(x)

    monkeypatch.setattr(matmul, "prefers_convolution", lambda: True)
    monkeypatch.setattr(matmul, "LEAST", 1)
    monkeypatch.setattr(matmul, "_pixels", counted)
    return taken


def equal(found, expected):
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_products_are_products(convolutions, bias, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    x, w, g = torch.randn(2, 64, 96), torch.randn(128, 96), torch.randn(128, 128)
    b = torch.randn(128) if bias else None
    try:
        y = matmul.linear(x, w, b)
        assert y.shape == (2, 64, 128)
        equal(y, F.linear(x.double(), w.double(), None if b is None else b.double()))
        equal(matmul.matmul(g, w), g.double() @ w.double())
        flat = x.view(128, 96)
        equal(matmul.transposed_matmul(g, flat), g.double().T @ flat.double())
        columns = flat[:, 10:80]
        equal(matmul.transposed_matmul(g, columns), g.double().T @ columns.double())
        out = torch.zeros(128, 200)
        matmul.matmul_into(g, w, out[:, 30:126])
        equal(out[:, 30:126], g.double() @ w.double())
        assert not out[:, :30].any() and not out[:, 126:].any()
    finally:
        torch.set_num_threads(before)
    assert len(convolutions) == 5


def test_tall_gradients_are_made_in_parts(convolutions, monkeypatch):
    monkeypatch.setattr(matmul, "ROWS", 128)
    g, x = torch.randn(160, 384), torch.randn(160, 64)
    equal(matmul.transposed_matmul(g, x), g.double().T @ x.double())
    assert convolutions == [(128, 160)] * 3


def test_gradients_of_many_tokens_are_summed_in_parts(convolutions, monkeypatch):
    monkeypatch.setattr(matmul, "TOKENS", 100)
    g, x, out = torch.randn(250, 128), torch.randn(250, 64), torch.empty(128, 100)
    matmul.transposed_matmul(g, x, out[:, 20:84])
    equal(out[:, 20:84], g.double().T @ x.double())
    assert [tokens for _, tokens in convolutions] == [84, 84, 82]


@pytest.mark.parametrize("bias", [False, True])
def test_large_weights_are_copied_in_parts(convolutions, monkeypatch, bias):
    copied, convolve = [], matmul._convolve

    def seen(x, weight, bias):
        copied.append(tuple(weight.shape))
        return convolve(x, weight, bias)

    monkeypatch.setattr(matmul, "COPIED", 1)
    monkeypatch.setattr(matmul, "COLUMNS", 64)
    monkeypatch.setattr(matmul, "_convolve", seen)
    x, w, g = torch.randn(2, 80, 480), torch.randn(200, 480) / 20, torch.randn(512, 96)
    b = torch.randn(200) if bias else None
    y = matmul.linear(x, w, b)
    equal(y, F.linear(x.double(), w.double(), None if b is None else b.double()))
    assert copied == [(128, 480), (72, 480)]  # the weight is three times the result
    assert len(convolutions) == 2
    small = torch.randn(200, 96) / 10
    equal(matmul.linear(g, small), g.double() @ small.double().T)
    assert len(convolutions) == 3  # and here it is smaller


def test_a_product_without_features(convolutions):
    assert torch.equal(matmul.matmul(torch.randn(5, 0), torch.randn(0, 7)), torch.zeros(5, 7))
    assert torch.equal(matmul.linear(torch.randn(5, 0), torch.randn(7, 0)), torch.zeros(5, 7))


def test_columns_in_their_place_are_made_in_parts(convolutions, monkeypatch):
    monkeypatch.setattr(matmul, "COLUMNS", 128)
    g, w, out = torch.randn(160, 192)[:, ::2], torch.randn(96, 300), torch.zeros(160, 320)
    matmul.matmul_into(g, w, out[:, 10:310])
    equal(out[:, 10:310], g.double() @ w.double())
    assert not out[:, :10].any() and not out[:, 310:].any()
    assert len(convolutions) == 3


@pytest.mark.parametrize(
    ("rows", "features", "dtype"),
    [
        (131, 64, torch.float32),  # a prime number of rows
        (128, 63, torch.float32),  # narrow
        (128, 64, torch.float64),
        (128, 64, torch.bfloat16),
    ],
)
def test_others_stay_as_they_are(convolutions, rows, features, dtype):
    x, w = torch.randn(rows, features).to(dtype), torch.randn(64, features).to(dtype)
    assert torch.equal(matmul.linear(x, w), F.linear(x, w))
    assert not convolutions


def test_small_products_and_other_processors_stay(monkeypatch):
    monkeypatch.setattr(matmul, "_pixels", None)
    x, w = torch.randn(128, 64), torch.randn(64, 64)
    monkeypatch.setattr(matmul, "prefers_convolution", lambda: True)
    assert torch.equal(matmul.linear(x, w), F.linear(x, w))
    monkeypatch.setattr(matmul, "LEAST", 1)
    monkeypatch.setattr(matmul, "prefers_convolution", lambda: False)
    assert torch.equal(matmul.linear(x, w), F.linear(x, w))


def test_rounded_convolutions_are_left_alone(convolutions):
    if not hasattr(torch.backends.mkldnn, "conv"):
        pytest.skip("needs torch 2.9 or newer")
    before = torch.backends.mkldnn.conv.fp32_precision
    x, w = torch.randn(128, 64), torch.randn(64, 64)
    try:
        torch.backends.mkldnn.conv.fp32_precision = "bf16"
        assert torch.equal(matmul.linear(x, w), F.linear(x, w))
    finally:
        torch.backends.mkldnn.conv.fp32_precision = before
    assert not convolutions


@pytest.mark.parametrize(("asked", "found"), [("0", False), ("1", True)])
def test_the_switch_decides(monkeypatch, asked, found):
    monkeypatch.setenv(matmul.SWITCH, asked)
    matmul.prefers_convolution.cache_clear()
    try:
        assert matmul.prefers_convolution() is found
    finally:
        matmul.prefers_convolution.cache_clear()


@pytest.mark.parametrize(
    ("vendor", "family", "flags", "found"),
    [
        ("AuthenticAMD", 26, "fma avx512f", True),
        ("AuthenticAMD", 25, "fma avx512f", False),  # Zen 4, slower by convolutions
        ("AuthenticAMD", 26, "fma", False),
        ("GenuineIntel", 26, "fma avx512f", False),
    ],
)
def test_the_processor_decides(monkeypatch, tmp_path, vendor, family, flags, found):
    about = tmp_path / "cpuinfo"
    about.write_text(f"vendor_id\t: {vendor}\ncpu family\t: {family}\nflags\t\t: {flags}\n")
    monkeypatch.setattr(processor, "Path", lambda _: about)
    monkeypatch.delenv(matmul.SWITCH, raising=False)
    cached = (matmul.prefers_convolution, processor.is_zen_5)
    for each in cached:
        each.cache_clear()
    try:
        assert matmul.prefers_convolution() is found
    finally:
        for each in cached:
            each.cache_clear()


RULES = {
    "snella": DeltaRule("mixed", "weighted"),
    "snella_v2": DeltaRule("centred", "normalised"),
    "lora": DeltaRule("linear", "none"),
}


@pytest.mark.parametrize("name", RULES)
def test_an_adapted_layer(convolutions, monkeypatch, name):
    """Output and gradients of a layer, with convolutions and without."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator) * 0.3

    scalars = [torch.tensor([v]) for v in (1.0, 1.0, 0.0)] if name == "snella" else []
    params = [draw(2, 96, 8), draw(2, 128, 8), *scalars]
    x, w, g, results = draw(4, 40, 96), draw(128, 96), draw(4, 40, 128), []
    for least in (1, 1 << 60):
        monkeypatch.setattr(matmul, "LEAST", least)
        leaves = [t.clone().requires_grad_() for t in (x, *params)]
        sparsity = 0.0 if name == "lora" else 0.6
        block = DeltaBlock(0, 128, RULES[name], sparsity, tuple(leaves[1:]))
        y = adapted_linear(leaves[0], w, None, [block])
        results.append([y.detach(), *torch.autograd.grad(y, leaves, g)])
        if least == 1:
            count = len(convolutions)
    assert len(convolutions) == count >= 2
    for with_them, without in zip(*results, strict=True):
        torch.testing.assert_close(with_them, without, rtol=1e-4, atol=1e-4)
