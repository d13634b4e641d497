"""The products of a step on a CPU, by whichever of torch's two libraries is the faster there.

torch multiplies by MKL, which gives AMD's Zen 5 about half of what it can do: its vectors of 512
bits are not used. Its convolutions run in oneDNN, which uses them, and a convolution of one pixel
is a product. So on such a processor large products in single precision are taken as convolutions;
elsewhere nothing changes. The processor decides and never a clock, so that a run keeps its bits
when it is resumed.
"""

import math
import os
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

#: ``SNELLA_ONEDNN=0`` leaves all products to MKL, ``1`` none of the large ones.
SWITCH = "SNELLA_ONEDNN"
#: The family of AMD's processors with units of 512 bits.
ZEN_5 = 26
#: Multiplications from which a convolution pays, and the least number of features.
LEAST, NARROW = 1 << 24, 64
#: torch takes a convolution of one pixel to oneDNN from this number of images on (with one thread).
IMAGES = 16
#: Pixels of an image below which oneDNN is slow.
PIXELS = 8
#: Rows of the gradient by a weight that are made at a time, since their operand is copied.
ROWS = 1024
#: Columns of a result that are made at a time where they are copied to their place, at least.
COLUMNS = 256
#: Weights of which oneDNN may always make a copy, as it does for its own order of them.
COPIED = 1 << 20


@lru_cache(maxsize=1)
def prefers_convolution() -> bool:
    """Whether this machine's processor is of a kind on which convolutions are the faster products.

    Known of AMD's from Zen 5 on (family 26); Zen 4 takes a vector of 512 bits in two halves, and
    MKL is the faster there. :data:`SWITCH` decides otherwise.
    """
    asked = os.environ.get(SWITCH)
    wanted = asked == "1" if asked in ("0", "1") else is_wide_amd()
    return wanted and torch.backends.mkldnn.is_available()


@lru_cache(maxsize=1)
def is_wide_amd() -> bool:
    """Whether this machine's processor is one of AMD's from Zen 5 on, with units of 512 bits."""
    try:
        about = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    family = re.search(r"^cpu family\s*:\s*(\d+)", about, re.MULTILINE)
    wide = family is not None and int(family[1]) >= ZEN_5 and "avx512f" in about
    return wide and "AuthenticAMD" in about


def _images(rows: int) -> int | None:
    """Into how many images of equal size rows are cut as pixels, the fewest; None: they cannot."""
    return next((n for n in range(IMAGES, rows // PIXELS + 1) if rows % n == 0), None)


def _fits(rows: int, inner: int, outer: int, *operands: Tensor) -> bool:
    """Whether a product (rows, inner) by (inner, outer) is to be a convolution."""
    return (
        rows * inner * outer >= LEAST
        and min(inner, outer) >= NARROW
        and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in operands)
        and prefers_convolution()
        and not _reduced()
        and _images(rows) is not None
    )


def _reduced() -> bool:
    """Whether oneDNN may round the operands of convolutions, as its owner may ask for."""
    conv = getattr(torch.backends.mkldnn, "conv", None)  # torch < 2.9 has none
    return getattr(conv, "fp32_precision", "none") in ("tf32", "bf16")


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x weight^T + bias``, (M, out), of x (M, in) and weight (out, in)."""
    return _rows(F.conv2d(_pixels(x), weight[:, :, None, None], bias))


def _convolve_transposed(x: Tensor, weight: Tensor) -> Tensor:
    """``x weight``, (M, n), of x (M, k) and weight (k, n), which is not turned."""
    return _rows(F.conv_transpose2d(_pixels(x), weight[:, :, None, None]))


def _pixels(x: Tensor) -> Tensor:
    """The rows of x (M, features) as pixels of images, (images, features, M / images, 1)."""
    images = _images(len(x))
    assert images is not None
    return x.reshape(images, len(x) // images, 1, -1).permute(0, 3, 1, 2)


def _rows(images: Tensor) -> Tensor:
    """Pixels as rows again."""
    return images.permute(0, 2, 3, 1).flatten(0, 2)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``, (..., out), of x (..., in) and weight (out, in)."""
    rows = x.numel() // max(1, x.shape[-1])
    if not _fits(rows, x.shape[-1], len(weight), x, weight):
        return F.linear(x, weight, bias)
    flat = x.reshape(rows, -1)

    def make(part: slice) -> Tensor:
        return _convolve(flat, weight[part], None if bias is None else bias[part])

    return _in_parts(make, flat, weight, len(weight)).view(*x.shape[:-1], -1)


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right``, (..., n), of left (..., k) and right (k, n)."""
    flat = left.reshape(-1, left.shape[-1])
    if not _fits(len(flat), *right.shape, left, right):
        return left @ right

    def make(part: slice) -> Tensor:
        return _convolve_transposed(flat, right[:, part])

    return _in_parts(make, flat, right, right.shape[1]).view(*left.shape[:-1], -1)


def _in_parts(make: Callable[[slice], Tensor], x: Tensor, weight: Tensor, columns: int) -> Tensor:
    """A result (M, columns) of x (M, ...) and a weight, in as many parts as let oneDNN's copy of
    the weight be no larger than the result, or small."""
    parts = math.ceil(weight.numel() / max(COPIED, len(x) * columns))
    width = max(COLUMNS, math.ceil(columns / parts))
    if width >= columns:
        return make(slice(None))
    out = x.new_empty(len(x), columns)
    for start in range(0, columns, width):
        part = slice(start, start + width)
        out[:, part] = make(part)
    return out


def matmul_into(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Write ``left @ right`` of two matrices into ``out``."""
    if not _fits(len(left), *right.shape, left, right):
        torch.mm(left, right, out=out)
        return
    for columns, to in zip(right.split(COLUMNS, 1), out.split(COLUMNS, 1), strict=True):
        to.copy_(_convolve_transposed(left, columns))


def transposed_matmul(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """``left^T @ right``, (m, n), of left (M, m) and right (M, n); into ``out`` where given."""
    parts = left.split(ROWS, 1)
    if not all(_fits(part.shape[1], *right.shape, part, right) for part in parts):
        return torch.mm(left.T, right, out=out)
    if len(parts) == 1 and out is None:
        return _convolve_transposed(_turned(left), right)
    out = right.new_empty(left.shape[1], right.shape[1]) if out is None else out
    for part, rows in zip(parts, out.split(ROWS), strict=True):
        rows.copy_(_convolve_transposed(_turned(part), right))
    return out


def _turned(part: Tensor) -> Tensor:
    """Columns (M, m) as rows (m, M). torch turns a whole matrix several times as fast as a part."""
    return part.contiguous().T.contiguous()
