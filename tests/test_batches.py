from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from metaadamw import NumberedBatches
from tests.training import assert_same


class Noisy:
    """Examples with random augmentation, from all three streams on the host."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> torch.Tensor:
        noise = torch.rand(1).item() + random.random() + float(np.random.rand())
        return torch.tensor([float(index), noise])


def random_streams():
    return torch.get_rng_state(), random.getstate(), np.random.get_state()


def test_a_batch_is_a_function_of_its_number():
    """In any order, in another object, wherever the random streams happen to be."""
    batches = NumberedBatches(Noisy(), 3, seed=4)
    first = [batches[n] for n in range(7)]
    torch.rand(5), random.random(), np.random.rand()
    again = NumberedBatches(Noisy(), 3, seed=4)
    assert_same([again[n] for n in reversed(range(7))], first[::-1])
    other = NumberedBatches(Noisy(), 3, seed=5)
    assert not torch.equal(other[0], first[0])


def test_augmentation_differs_between_batches_and_leaves_the_streams_alone():
    before = random_streams()
    batches = NumberedBatches(Noisy(), 5)
    seen = {round(noise, 6) for n in range(4) for noise in batches[n][:, 1].tolist()}
    assert len(seen) == 20
    assert_same(random_streams(), before)


def test_a_failing_example_leaves_the_streams_alone():
    before = random_streams()

    def collate(examples):
        torch.rand(3)
        raise OSError("unreadable")

    with pytest.raises(OSError, match="unreadable"):
        NumberedBatches(Noisy(), 2, collate)[0]
    assert_same(random_streams(), before)


def test_every_pass_shows_each_example_once():
    batches = NumberedBatches(range(12), 4)
    for number in range(3):
        shown = torch.cat([batches[3 * number + n] for n in range(3)])
        assert sorted(shown.tolist()) == list(range(12))


def test_processes_share_a_pass():
    """Together they see what one process with as many batches would have seen."""
    alone = NumberedBatches(range(24), 4)
    ranks = [NumberedBatches(range(24), 4, rank=rank, world_size=3) for rank in range(3)]
    for n in range(4):
        for rank in range(3):
            assert_same(ranks[rank][n], alone[3 * n + rank])


def test_a_data_set_smaller_than_a_batch_is_the_batch():
    assert sorted(NumberedBatches([1, 2], 8)[3].tolist()) == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dataset": iter([1])}, TypeError, "dataset must have a length .* got list_iterator"),
        ({"dataset": []}, ValueError, "dataset must hold at least one example"),
        ({"batch_size": 0}, ValueError, "batch_size must be an integer >= 1, got 0"),
        ({"seed": -1}, ValueError, "seed must be an integer >= 0, got -1"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank must be below world_size=2, got 2"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        NumberedBatches(**{"dataset": [1, 2], "batch_size": 1, **arguments})


def test_a_negative_number_is_no_batch():
    with pytest.raises(ValueError, match="n must be an integer >= 0, got -1"):
        NumberedBatches([1, 2], 1)[-1]
