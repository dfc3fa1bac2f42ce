"""Norms of parameters and moments, taken right after the step that wrote them.

Then they are still in the CPU's cache, and the next step need not read them from memory again. What
was changed from outside in between is noticed and read anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from metaadamw.layout import Layout, Pair
from metaadamw.tokens import Token

__all__ = ["Remembered"]

Stamp = tuple[int, int]


def _stamp(tensor: Tensor | None) -> Stamp:
    """Where a tensor is and how often it was written; ``tensor.data`` writes without a trace."""
    return (0, 0) if tensor is None else (tensor.data_ptr(), tensor._version)


class Remembered:
    """The inner products of parameters and moments with themselves, tensor by tensor.

    Args:
        pairs: the products wanted for the next step; those with a gradient cannot be known.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = [pair for pair in pairs if "grad" not in pair]
        self.forget()

    def forget(self) -> None:
        """Nothing is known."""
        self._values: list[Tensor] = []
        self._stamps: list[Stamp] = []

    def __getstate__(self) -> dict[str, Any]:
        """Addresses mean nothing in a copy or in another process."""
        return {"pairs": self.pairs, "_values": [], "_stamps": []}

    def take(self, token: Token, layout: Layout) -> None:
        """Take the products of a group that was just updated; call it for every group in order."""
        self._values += layout.scalars(_columns(token), self.pairs, len(token.params))
        self._stamps += _stamps(token)

    def recall(self, tokens: Sequence[Token], layout: Layout) -> dict[Pair, Tensor]:
        """The products, [P] each, or nothing if any tensor is not what it was."""
        current = [stamp for token in tokens for stamp in _stamps(token)]
        if not self._values or current != self._stamps:
            return {}
        return layout.table(self._values, self.pairs)


def _columns(token: Token) -> dict[str, Sequence[Tensor | None]]:
    return {"param": token.params, "exp_avg": token.exp_avgs, "exp_avg_sq": token.exp_avg_sqs}


def _stamps(token: Token) -> list[Stamp]:
    return [
        _stamp(tensor)
        for tensors in (token.params, token.exp_avgs, token.exp_avg_sqs)
        for tensor in tensors
    ]
