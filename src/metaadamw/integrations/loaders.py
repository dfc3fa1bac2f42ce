"""Meta-batches of whatever loader is in use."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import Subset, SubsetRandomSampler

from metaadamw import NumberedBatches

__all__ = ["LoaderBatches", "batch_size_of", "own_copy"]


def batch_size_of(loader: Any) -> int | None:
    """Examples in a batch of ``loader``; None if it has no such number."""
    size: int | None = getattr(loader, "batch_size", None)
    return size or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)


def own_copy(batch: Any) -> Any:
    """The batch with tensors of its own: a loss that writes to them writes to this copy only."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, batch)


class LoaderBatches:
    """``NumberedBatches`` as a loader makes them, in an order of their own.

    A framework may make its loader anew, or give its batches another size, while the model trains.
    So every access says which loader is in use, and what was made for another one is dropped.

    Args:
        dataset: examples instead of the loader's.
        seed: of the order, and of what is drawn while examples are loaded.
        rank: this process among ``world_size``.
        world_size: the number of processes.
    """

    def __init__(
        self, dataset: Any = None, *, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.dataset = dataset
        self.options = {"seed": seed, "rank": rank, "world_size": world_size}
        self._made_for: tuple[Any, int] | None = None

    def of(self, loader: Any, batch_size: int) -> NumberedBatches:
        """Batches of this size from what ``loader`` loads.

        Raises:
            TypeError: the data set has no length.
            ValueError: it is empty.
        """
        made = self._made_for
        if made is None or made[0] is not loader or made[1] != batch_size:
            self._batches = NumberedBatches(
                _examples(loader) if self.dataset is None else self.dataset,
                batch_size,
                loader.collate_fn,
                **self.options,
            )
            self._made_for = loader, batch_size
        return self._batches


def _examples(loader: Any) -> Any:
    """What the loader may deliver: a split by ``SubsetRandomSampler`` keeps the rest out."""
    sampler = getattr(loader, "sampler", None)
    if isinstance(sampler, SubsetRandomSampler):
        return Subset(loader.dataset, sampler.indices)
    return loader.dataset
