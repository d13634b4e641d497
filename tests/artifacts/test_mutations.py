"""Files whose bytes were changed anywhere: read as they were, or refused by the documented errors.

SNELLA_MUTATIONS=5000 tries more than a test run should.
"""

import os
import random
import time

import torch

from snella_seg.artifacts import make_delta, read_adapter, save_delta
from snella_seg.artifacts.sparse_delta import load_delta
from snella_seg.loading import CheckpointError, check_checkpoint

COUNT = int(os.environ.get("SNELLA_MUTATIONS", 150))


def mutate(content: bytes, generator: random.Random) -> bytes:
    """Flip, overwrite, cut, double or zero something; the beginning more often than the rest."""
    data = bytearray(content)
    place = generator.randrange(len(data) if generator.random() < 0.5 else min(len(data), 2000))
    kind = generator.randrange(5)
    if kind == 0:
        data[place] ^= 1 << generator.randrange(8)
    elif kind == 1:
        length = generator.randrange(1, 16)
        data[place : place + length] = generator.randbytes(length)
    elif kind == 2:
        del data[place:]
    elif kind == 3:
        data[place:place] = data[place : place + generator.randrange(1, 64)]
    else:
        length = min(4096, len(data) - place)
        data[place : place + length] = bytes(length)
    return bytes(data)


def try_all(path, content, read, seed):
    """Read mutated files; return how many were refused."""
    generator, refused, slowest = random.Random(seed), 0, 0.0
    for _ in range(COUNT):
        path.write_bytes(mutate(content, generator))
        start = time.perf_counter()
        try:
            read(path)
        except (CheckpointError, FileNotFoundError):
            refused += 1
        slowest = max(slowest, time.perf_counter() - start)
    assert slowest < 10
    return refused


def test_adapter_files(adapter_file, tmp_path):
    content = adapter_file.read_bytes()
    refused = try_all(tmp_path / "mutated.safetensors", content, read_adapter, 0)
    assert refused > 0.95 * COUNT  # padding and doubled nothing may pass


def test_sparse_deltas(tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(20, 30, generator=generator) for name in ("a.weight", "b.weight")}
    merged = {
        k: v + (torch.rand(v.shape, generator=generator) < 0.2) * 0.1 for k, v in base.items()
    }
    path = tmp_path / "delta.safetensors"
    save_delta(make_delta(base, merged), path)
    assert try_all(path, path.read_bytes(), load_delta, 1) > 0.95 * COUNT


def test_checkpoints(tmp_path):
    path = tmp_path / "checkpoint.pth"
    state = {f"layer{i}.weight": torch.randn(16, 16) for i in range(4)}
    torch.save({"state_dict": state, "meta": {"iter": 1}}, path)

    def read(mutated):
        check_checkpoint(str(mutated), "checkpoint")

    assert try_all(path, path.read_bytes(), read, 2) > 0.6 * COUNT  # names may change in a zip
