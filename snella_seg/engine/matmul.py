"""The products of a step on a CPU, by whichever of torch's two libraries is the faster there.

torch multiplies by MKL, which gives AMD's Zen 5 about half of what it can do: its vectors of 512
bits are not used. Its convolutions run in oneDNN, which uses them, and a convolution of one pixel
is a product. So on such a processor large products in single precision are taken as convolutions;
elsewhere nothing changes. The processor decides and never a clock, so that a run keeps its bits
when it is resumed.
"""

import math
import os
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .processor import is_zen_5

#: ``SNELLA_ONEDNN=0`` leaves all products to MKL, ``1`` none of the large ones.
SWITCH = "SNELLA_ONEDNN"
#: Multiplications from which a convolution pays, and the least number of features.
LEAST, NARROW = 1 << 24, 64
#: torch takes a convolution of one pixel to oneDNN from this number of images on (with one thread).
IMAGES = 16
#: Pixels of an image below which oneDNN is slow.
PIXELS = 8
#: Rows of the gradient by a weight, and tokens over which it is summed, that are taken at a time,
#: since their operands are copied.
ROWS, TOKENS = 1024, 2048
#: Columns of a result that are made at a time where they are copied to their place.
COLUMNS = 256
#: Weights of which oneDNN may always make a copy, as it does for its own order of them.
COPIED = 1 << 20


@lru_cache(maxsize=1)
def prefers_convolution() -> bool:
    """Whether this machine's processor is of a kind on which convolutions are the faster products.

    Known of AMD's from Zen 5 on; on Zen 4 MKL is the faster. :data:`SWITCH` decides otherwise.
    """
    asked = os.environ.get(SWITCH)
    wanted = asked == "1" if asked in ("0", "1") else is_zen_5()
    return wanted and torch.backends.mkldnn.is_available()


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
    """``F.linear``, (..., out), of x (..., in) and weight (out, in).

    oneDNN copies the weight into an order of its own. Where that copy would be large, and larger
    than the result, the result is made in parts.
    """
    rows, outs = _rows_of(x), len(weight)
    if not _fits(rows, x.shape[-1], outs, x, weight):
        return F.linear(x, weight, bias)
    flat = x.reshape(rows, -1)
    count = math.ceil(weight.numel() / max(COPIED, rows * outs))
    parts = _parts(outs, max(COLUMNS, math.ceil(outs / count)))
    if len(parts) == 1:
        return _convolve(flat, weight, bias).view(*x.shape[:-1], -1)
    y = x.new_empty(rows, outs)
    for part in parts:
        y[:, part] = _convolve(flat, weight[part], None if bias is None else bias[part])
    return y.view(*x.shape[:-1], -1)


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right``, (..., n), of left (..., k) and right (k, n)."""
    rows = _rows_of(left)
    if not _fits(rows, *right.shape, left, right):
        return left @ right
    y = _convolve_transposed(left.reshape(rows, -1), right)
    return y.view(*left.shape[:-1], -1)


def matmul_into(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Write ``left @ right`` of two matrices into ``out``."""
    if not _fits(len(left), *right.shape, left, right):
        torch.mm(left, right, out=out)
        return
    left = left.contiguous()
    for part in _parts(right.shape[1], COLUMNS):
        out[:, part] = _convolve_transposed(left, right[:, part])


def transposed_matmul(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """``left^T @ right``, (m, n), of left (M, m) and right (M, n); into ``out`` where given.

    ``TOKENS`` and ``ROWS`` bound what is copied: some columns of left, and all of right.
    """
    parts = left.split(ROWS, 1)
    if not all(_fits(part.shape[1], *right.shape, part, right) for part in parts):
        return torch.mm(left.T, right, out=out)
    out = right.new_empty(left.shape[1], right.shape[1]) if out is None else out
    count = math.ceil(len(right) / TOKENS)
    for part, rows in zip(parts, out.split(ROWS), strict=True):
        for number, (some, those) in enumerate(
            zip(part.chunk(count), right.chunk(count), strict=True)
        ):
            made = _convolve_transposed(_as_rows(some), those)
            rows.copy_(made) if number == 0 else rows.add_(made)
    return out


def _rows_of(x: Tensor) -> int:
    """How many rows of features there are, M of (M, features)."""
    return x.numel() // max(1, x.shape[-1])


def _parts(columns: int, widest: int) -> list[slice]:
    """Cut columns into parts of equal width, a multiple of ``NARROW``, of about ``widest``."""
    count = math.ceil(columns / widest)
    width = NARROW * math.ceil(columns / count / NARROW)
    return [slice(start, min(start + width, columns)) for start in range(0, columns, width)]


def _as_rows(part: Tensor) -> Tensor:
    """Columns (M, m) as rows (m, M). torch turns a contiguous matrix several times as fast as a
    part of one, so that a part is copied before."""
    return part.contiguous().T.contiguous()
