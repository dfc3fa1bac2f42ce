"""Batches for meta-updates that need no position to be saved."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import default_collate

from metaadamw.checks import check_count
from metaadamw.learning.lookahead.undisturbed import RandomStreams
from metaadamw.state.streams import BatchOrder, stream_seed

__all__ = ["NumberedBatches"]


class NumberedBatches:
    """Endless shuffled passes over a data set: ``batches[n]`` is always the same batch.

    What a meta-update sees then follows from ``optimizer.steps``, which every checkpoint holds. A
    resumed run goes on exactly, no matter how often a loader was started again. Random augmentation
    in the data set or in ``collate_fn`` is part of the batch, and leaves the random streams of the
    training untouched.

    Args:
        dataset: has a length and is indexed by number. It may change and grow; a batch is of the
            examples that it has when the batch is asked for.
        batch_size: examples in a batch; those left over at the end of a pass are left out of it.
        collate_fn: a list of examples -> a batch. None: as in ``DataLoader``.
        seed: of the order of every pass and of augmentation.
        rank: this process among ``world_size``; each has batches of its own.
        world_size: the number of processes that train one model.

    Raises:
        TypeError: the data set has no length (an iterable one).
        ValueError: an empty data set, a count out of range.

    Example:
        >>> batches = NumberedBatches([1, 2, 3, 4], batch_size=2)
        >>> sorted([*batches[0].tolist(), *batches[1].tolist()])
        [1, 2, 3, 4]
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        for name, value, low in (
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("rank", rank, 0),
            ("world_size", world_size, 1),
        ):
            check_count(name, value, low)
        if rank >= world_size:
            raise ValueError(f"rank must be below world_size={world_size}, got {rank}")
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise TypeError(
                "dataset must have a length and be indexed by number, got "
                f"{type(dataset).__name__}; of a stream take as many examples as you can spare, "
                "list(itertools.islice(stream, 1000))"
            )
        if len(dataset) == 0:
            raise ValueError("dataset must hold at least one example, got an empty one")
        self.dataset, self.collate_fn = dataset, collate_fn or default_collate
        self.batch_size = batch_size
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.order = self._order(len(dataset))

    def _order(self, examples: int) -> BatchOrder:
        per_pass = max(examples // self.batch_size, 1)
        return BatchOrder(examples, self.batch_size, per_pass, self.seed, "order")

    def __getitem__(self, n: int) -> Any:
        """Batch n, counted from 0 over all passes."""
        check_count("n", n, 0)
        examples = len(self.dataset)
        if examples == 0:
            raise ValueError("dataset must hold at least one example, got one that is empty by now")
        if examples != self.order.examples:
            self.order = self._order(examples)
        number = n * self.world_size + self.rank
        with _random_numbers_of(stream_seed(self.seed, "examples", number)):
            return self.collate_fn([self.dataset[i] for i in self.order[number].tolist()])


@contextmanager
def _random_numbers_of(seed: int) -> Iterator[None]:
    """Seed the streams on the host, put them back at the end."""
    streams = RandomStreams(())
    try:
        random.seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach all devices
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(seed % 2**32)
        yield
    finally:
        streams.restore()
