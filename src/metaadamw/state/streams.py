"""Random streams: every random number of a run follows from its seed, its stream and its place.

No generator carries on from one step to the next, so what one stream draws never moves another,
and a resumed run needs to know nothing but how far it had come.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

__all__ = ["BatchOrder", "stream_seed"]


def stream_seed(seed: int, stream: str, *place: int) -> int:
    """The seed of one place in one stream, for example the dropout masks of step 7."""
    text = "/".join(map(str, (seed, stream, *place)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class BatchOrder:
    """Indices of the examples in the n-th batch of endless passes over a data set.

    Args:
        examples: size of the data set.
        batch_size: examples per batch.
        per_pass: batches of one pass; an incomplete one comes last, if it is counted here.
        seed: the run's seed.
        stream: the stream that the order of every pass is drawn from; None keeps the data's order.
    """

    def __init__(
        self, examples: int, batch_size: int, per_pass: int, seed: int, stream: str | None
    ) -> None:
        self.examples, self.batch_size, self.per_pass = examples, batch_size, per_pass
        self.seed, self.stream = seed, stream
        self._pass, self._order = -1, torch.empty(0, device="cpu")

    def __getitem__(self, n: int) -> Tensor:
        """Indices of batch n, counted over all passes from 0."""
        number, batch = divmod(n, self.per_pass)
        if number != self._pass:
            self._pass, self._order = number, self._draw(number)
        return self._order[batch * self.batch_size : (batch + 1) * self.batch_size]

    def _draw(self, number: int) -> Tensor:
        if self.stream is None:
            return torch.arange(self.examples, device="cpu")
        generator = torch.Generator().manual_seed(stream_seed(self.seed, self.stream, number))
        return torch.randperm(self.examples, generator=generator, device="cpu")
