"""Every step and every sample draws numbers of its own, whatever happened before."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from snella_seg.hooks.seeding import PositionSampler, sample_seed, seed_samples, seed_step


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


class Drawing(Dataset):
    """Each item is its index and what the generators give."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int):
        assert type(index) is int
        return index, *draw()


class Order:
    def __init__(self, *indices: int) -> None:
        self.indices = indices

    def __iter__(self):
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def loader(order: Order, workers: int = 0, **options) -> DataLoader:
    return DataLoader(Drawing(), sampler=order, num_workers=workers, collate_fn=list, **options)


def items(source: DataLoader) -> list[tuple]:
    return [item for batch in source for item in batch]


def test_a_step_draws_the_same_again_and_others_draw_others():
    def at(*key):
        seed_step(*key)
        return draw()

    assert at(3, 7) == at(3, 7)
    assert len({at(3, 7), at(3, 8), at(4, 7), at(3, 7, 1)}) == 4


def test_samples_leave_the_generators_alone():
    seed_step(0, 0)
    expected = draw()
    seed_step(0, 0)
    with sample_seed(0, 5):
        inside = draw()
    assert draw() == expected != inside
    with pytest.raises(KeyError), sample_seed(0, 6):
        raise KeyError
    with sample_seed(0, 5):
        assert draw() == inside


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_depend_on_seed_and_position_only(workers):
    order = Order(4, 0, 4, 1, 5, 2)
    plain = loader(order, batch_size=2)
    assert seed_samples(plain, seed=1, rank=0).start == 0
    expected = items(plain)
    assert [item[0] for item in expected] == list(order.indices)
    assert len({item[1:] for item in expected}) == 6  # index 4 comes twice and draws anew
    for batch_size in (1, 3):
        again = loader(order, workers, batch_size=batch_size)
        seed_samples(again, seed=1, rank=0)
        draw()
        assert items(again) == expected
    for seed, rank in ((2, 0), (1, 1)):
        other = loader(order, workers, batch_size=2)
        seed_samples(other, seed=seed, rank=rank)
        assert not {item[1:] for item in items(other)} & {item[1:] for item in expected}


def test_positions_go_on_from_pass_to_pass_and_from_anywhere():
    order = Order(4, 0, 3)
    source = loader(order, batch_size=1)
    seed_samples(source, seed=1, rank=0)
    first, second = items(source), items(source)
    assert [i[0] for i in first] == [i[0] for i in second]
    assert not {i[1:] for i in first} & {i[1:] for i in second}
    resumed = loader(order, batch_size=1)
    sampler = seed_samples(resumed, seed=1, rank=0)
    sampler.start, sampler.pass_over = 3, 1  # within the second pass, after its first sample
    assert items(resumed) == second[1:]


def test_iterating_a_loader_leaves_the_generators_alone():
    source = loader(Order(0, 1), batch_size=1)
    seed_samples(source, seed=1, rank=0)
    seed_step(0, 0)
    expected = draw()
    seed_step(0, 0)
    items(source)
    assert draw() == expected


def test_a_sampler_keeps_what_else_it_has():
    sampler = PositionSampler(Order(1, 2))
    assert len(sampler) == 2 and sampler.indices == (1, 2)
    with pytest.raises(AttributeError):
        getattr(sampler, "nothing")  # noqa: B009


def test_loaders_that_cannot_be_seeded_stay_as_they_are():
    class Batches(Drawing):
        def __getitems__(self, indices):
            return [self[i] for i in indices]

    source = DataLoader(Batches(), batch_size=2, collate_fn=list)
    before = source.batch_sampler.sampler
    assert seed_samples(source, seed=1, rank=0) is None
    assert source.batch_sampler.sampler is before
    assert seed_samples(DataLoader(Drawing(), batch_size=None), seed=1, rank=0) is None
