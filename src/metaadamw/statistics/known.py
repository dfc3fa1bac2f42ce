"""What a step knows of the next one's statistics: ‖θ‖² and ‖v‖², taken when they are written.

They serve until something says that somebody else has written, too: the tensor is another or lies
elsewhere, autograd has counted a change or, because nobody counts those made through ``.data``, a
few of its entries differ. Then all are read again.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from metaadamw.statistics.layout import Column, Layout, Pair
from metaadamw.update.one_pass import Written, samples

__all__ = ["Known", "can_know"]

SQUARES: tuple[Pair, Pair] = (("param", "param"), ("exp_avg_sq", "exp_avg_sq"))


def can_know(layout: Layout, pairs: Sequence[Pair]) -> bool:
    """Whether some of these products can be taken when the tensors are written."""
    plain = layout.uniform and layout.device.type == "cpu" and layout.shards is None
    return plain and not set(SQUARES).isdisjoint(pairs)


class Known:
    """Remembers what a step has written until the next; a copy remembers nothing."""

    def __init__(self) -> None:
        self._written: Written | None = None
        self._versions: list[int] = []

    def __reduce__(self) -> tuple[type[Known], tuple[()]]:
        return Known, ()

    def keep(self, written: Written | None) -> None:
        """Take note of what a step has written; None: it did not say."""
        self._written = written
        if written is not None:
            self._versions = [t._version for t in (*written.params, *written.exp_avg_sqs)]

    def products(
        self, layout: Layout, columns: Mapping[str, Column], pairs: Sequence[Pair]
    ) -> dict[Pair, Tensor]:
        """``layout.products`` of columns as in ``tensor_columns``, reading what is not known."""
        written = self._written
        params = cast("Sequence[Tensor | None]", columns["param"])
        exp_avg_sqs = cast("Sequence[Tensor | None]", columns["exp_avg_sq"])
        if written is None or not self._unchanged(written, params, exp_avg_sqs):
            return layout.products(columns, pairs)
        squares, others = written.squares.to(layout.dtype), set()
        if len(written.positions) < len(params):
            others = set(range(len(params))) - set(written.positions)
            squares = squares.new_zeros(len(params), 2).index_copy(
                0, torch.tensor(written.positions, device="cpu"), squares
            )
        left = {
            **columns,
            "param": [t if i in others else None for i, t in enumerate(params)],
            "exp_avg_sq": [t if i in others else None for i, t in enumerate(exp_avg_sqs)],
        }
        products = layout.products(left, pairs)
        for pair, known in zip(SQUARES, squares.unbind(1), strict=True):
            if pair in products:
                products[pair] = products[pair] + known  # one of the two is 0
        return products

    def _unchanged(
        self,
        written: Written,
        params: Sequence[Tensor | None],
        exp_avg_sqs: Sequence[Tensor | None],
    ) -> bool:
        if len(params) <= max(written.positions, default=-1):
            return False
        then = [*written.params, *written.exp_avg_sqs]
        now = [column[i] for column in (params, exp_avg_sqs) for i in written.positions]
        return (
            all(map(operator.is_, then, now))
            and [t._version for t in then] == self._versions
            and samples(written.params, written.dtype) == written.samples
        )
