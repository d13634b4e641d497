"""Random numbers as a function of the seed and the step, so that a resumed run draws the same.

A run that is cut off loses the state of its random generators, in this process and in the workers
that load data. Nothing has to be saved where every step and every sample draws from generators
that are seeded by the run's seed and by its own position alone (the idea of counter-based random
numbers; Salmon et al., SC 2011). Results then do not depend on the number of workers either.
"""

import contextlib
import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader

_STEP, _SAMPLE = 0, 1  # streams


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed the generators of Python, numpy and torch (all devices) for one training step."""
    keys = _keys(seed, _STEP, step, rank)
    _seed_host(keys)
    torch.manual_seed(keys[2])


@contextlib.contextmanager
def sample_seed(seed: int, position: int, rank: int = 0) -> Iterator[None]:
    """Within this context the CPU's generators draw for one sample; after it, as before it."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    keys = _keys(seed, _SAMPLE, position, rank)
    _seed_host(keys)
    torch.default_generator.manual_seed(keys[2])
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _keys(*entropy: int) -> list[int]:
    words = np.random.SeedSequence(entropy).generate_state(3, np.uint64)
    return [int(word) >> 1 for word in words]  # torch takes 63 bits


def _seed_host(keys: list[int]) -> None:
    random.seed(keys[0])
    np.random.seed(keys[1] % 2**32)


class Position(int):
    """An index that a sampler drew, and the how-manieth of the run it is."""

    position: int


class PositionSampler:
    """Passes a sampler's indices on as :class:`Position`.

    Attributes:
        start: position of the next index; moves on with every index drawn.
        pass_over: how many indices to leave out when it is iterated next.
    """

    def __init__(self, sampler) -> None:
        self.sampler, self.start, self.pass_over = sampler, 0, 0

    def __iter__(self) -> Iterator[Position]:
        first, self.pass_over = self.pass_over, 0
        for number, index in enumerate(self.sampler):
            self.start += 1
            if number >= first:
                drawn = Position(index)
                drawn.position = self.start - 1
                yield drawn

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str):
        if name == "sampler":  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self.sampler, name)


class SeededFetch:
    """Fetches samples of a dataset (torch's ``__getitems__``), each under its own seed."""

    def __init__(self, dataset, seed: int, rank: int) -> None:
        self.dataset, self.seed, self.rank = dataset, seed, rank

    def __call__(self, indices: Sequence[int]) -> list:
        samples = []
        for index in indices:
            with sample_seed(self.seed, getattr(index, "position", int(index)), self.rank):
                samples.append(self.dataset[int(index)])
        return samples


def seed_samples(loader: DataLoader, seed: int, rank: int) -> PositionSampler | None:
    """Let every sample that a loader loads draw random numbers of its own.

    Must be called before the loader is iterated.

    Returns:
        The sampler that counts positions, or None where the loader's batches do not come from a
        sampler of indices, or its dataset fetches batches by itself; then it stays as it is.
    """
    batches, dataset = loader.batch_sampler, loader.dataset
    sampler = getattr(batches, "sampler", None)
    if sampler is None or hasattr(dataset, "__getitems__"):
        return None
    batches.sampler = PositionSampler(sampler)
    dataset.__getitems__ = SeededFetch(dataset, seed, rank)
    # Iterating a loader draws a base seed: not from the generator that training uses.
    loader.generator = torch.Generator()
    return batches.sampler
