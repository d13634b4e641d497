"""Which entries of a matrix take part, as the C library marks them."""

import torch

from snella_seg.engine.native import Entries


def entries_of(wanted):
    """``wanted`` (out, columns), bool, as a bit for each column of a strip of 64."""
    outs, columns = wanted.shape
    strips = -(-columns // 64)
    padded = torch.zeros(outs, 64 * strips, dtype=torch.int64)
    padded[:, :columns] = wanted
    bits = padded.view(outs, strips, 64) << torch.arange(64)
    return Entries(bits.sum(-1).T.contiguous(), columns)
