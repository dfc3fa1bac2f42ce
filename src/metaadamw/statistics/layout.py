"""Which tensor belongs to which group, and sums over the tensors of a group."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from metaadamw.grouping.fine_grained import is_bias, normalized_depths
from metaadamw.grouping.validation import can_move
from metaadamw.parallel.shards import Shards, is_distributed
from metaadamw.state.precision import full_precision
from metaadamw.statistics.products import tensor_products

__all__ = ["ZEROS", "Column", "Layout", "Pair", "cosines", "flat"]

Column = Sequence[Tensor | None] | Callable[[int], Tensor | None]
"""P tensors, or a function that makes the one at a position."""

Pair = tuple[str, str]
"""Names of two columns whose tensors are multiplied; or of one and ``ZEROS``, which counts."""

ZEROS = "zeros"
"""Stands for the second column: how many entries of the first are 0."""


class Layout:
    """Which tensor belongs to which group, and what never changes: sizes, bias ratio, depth.

    Args:
        param_groups: the optimizer's param groups.
        device: where the features are wanted.
        dtype: and in which precision.
    """

    def __init__(
        self, param_groups: Sequence[Mapping[str, Any]], device: torch.device, dtype: torch.dtype
    ) -> None:
        counts = [len(group["params"]) for group in param_groups]
        group_of = list(itertools.chain.from_iterable([g] * n for g, n in enumerate(counts)))
        self.tensors = _tensors(param_groups)
        self.device, self.dtype = device, dtype
        self.sizes, self.groups = counts, group_of
        self.zero = torch.zeros((), dtype=dtype, device=device)
        self.params: list[Tensor] = [p for group in param_groups for p in group["params"]]
        params = self.params
        moving = [can_move(p) for p in params]
        self.uniform = all(
            p.device == device and (torch.finfo(p.dtype).bits == 64) == (dtype == torch.float64)
            for p, moves in zip(params, moving, strict=True)
            if moves
        )
        # On an accelerator a launch costs more than the work on a small tensor.
        self.batched = self.uniform and device.type != "cpu"
        distributed = any(is_distributed(p) for p in params)
        self.shards = Shards(params) if distributed else None
        self.shares = self.vector([] if self.shards is None else self.shards.shares)
        self.group_of = torch.tensor(group_of, dtype=torch.long, device="cpu").to(device)
        # Sums and means over the tensors of a group are one small matrix product.
        membership = torch.zeros(len(counts), len(group_of), dtype=dtype, device="cpu")
        for row, start, n in zip(
            range(len(counts)), itertools.accumulate([0, *counts]), counts, strict=False
        ):
            membership[row, start : start + n] = torch.tensor(
                moving[start : start + n], device="cpu"
            ).to(dtype)
        self.sum = membership.to(device).T.contiguous()  # [P, G]
        self.mean = self.sum / self.sum.sum(0).clamp_min(1.0)

        numels = [
            float(sum(_reals(p) for p in group["params"] if can_move(p))) for group in param_groups
        ]
        self.numel = self.vector(numels).clamp_min(1.0)  # [G]
        self.log_numel = self.numel.log()
        biases, depths = [], []
        names = [
            list(group.get("param_names", [""] * len(group["params"]))) for group in param_groups
        ]
        by_name = iter(normalized_depths(itertools.chain.from_iterable(names)))
        for group, group_names in zip(param_groups, names, strict=True):
            flags = [is_bias(n, p) for n, p in zip(group_names, group["params"], strict=True)]
            values = [0.5 if d is None else d for d in itertools.islice(by_name, len(flags))]
            biases.append(sum(flags) / max(len(flags), 1))
            depths.append(group.get("depth", sum(values) / max(len(values), 1)))
        self.bias_ratio = self.vector(biases)
        self.depth = self.vector(depths)

    def vector(self, values: Sequence[float | Tensor]) -> Tensor:
        """Numbers as a vector on the device; those of the host without waiting for it."""
        if any(isinstance(value, Tensor) for value in values):
            return self.stack([(self.zero + value).reshape(()) for value in values])
        pinned = self.device.type == "cuda"
        host = torch.tensor(values, dtype=self.dtype, device="cpu", pin_memory=pinned)
        return host.to(self.device, non_blocking=True)

    def own(self, tensor: Tensor) -> Tensor:
        """A copy of a saved tensor where the features are wanted."""
        return tensor.detach().to(device=self.device, dtype=self.dtype, copy=True)

    def fits(self, param_groups: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the param groups still hold the tensors this was made for, where they were."""
        counts = [len(group["params"]) for group in param_groups]
        return self.sizes == counts and self.tensors == _tensors(param_groups)

    def stack(self, values: Sequence[Tensor]) -> Tensor:
        """Scalars of any device and precision as one vector."""
        if not self.uniform:
            waits = self.device.type == "cpu"  # the host must, for numbers of a device
            values = [v.to(self.zero, non_blocking=not waits) for v in values]
        return torch.stack(list(values)) if values else self.zero.expand(0)

    def products(self, columns: Mapping[str, Column], pairs: Sequence[Pair]) -> dict[Pair, Tensor]:
        """Inner products of the tensors of two columns, [P] for each pair; None counts as 0.

        Tensors spread over processes are summed over all of them, for all pairs at once.

        Taken tensor by tensor, so that it is still in the cache for its next product, by a kernel
        block by block. ``dot`` also serves for squared norms: on a CPU it runs at the memory's
        speed, ``norm`` does not.

        Args:
            columns: lists of P tensors, or functions of the position.
            pairs: names of two columns each.
        """
        if not pairs:
            return {}
        names = list(dict.fromkeys(name for pair in pairs for name in pair if name != ZEROS))
        sides = [(names.index(x), -1 if y == ZEROS else names.index(y)) for x, y in pairs]
        used = [columns[name] for name in names]
        rows = None
        if self.uniform and self.device.type == "cpu":
            rows = tensor_products(names, used, self._numels(columns), sides, self.dtype)
        if rows is None:
            rows = self._products(columns, used, sides)
        rows = rows.T
        if self.shards is not None and self.shards.split:
            rows = self.shards.total(rows * self.shares)
        return dict(zip(pairs, rows.unbind(0), strict=True))

    def _products(
        self,
        columns: Mapping[str, Column],
        used: Sequence[Column],
        sides: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Pair by pair with torch's operations, [P, pairs]."""
        at = [column if callable(column) else column.__getitem__ for column in used]
        squares = self._squares(used, {x for x, y in sides if x == y}) if self.batched else {}
        values = []
        for i in range(len(self.group_of)):
            vectors = [None if (t := tensor(i)) is None else flat(t) for tensor in at]
            for x, y in sides:
                left, right = vectors[x], None if y < 0 else vectors[y]
                if y < 0:
                    values.append(self._zeros(left, columns, i))
                elif x == y and (x, i) in squares:
                    values.append(squares[x, i])
                elif left is None or right is None:
                    values.append(self.zero)
                else:
                    values.append(torch.dot(left, right))
        return self.stack(values).view(-1, len(sides))

    def _squares(
        self, used: Sequence[Column], wanted: Iterable[int]
    ) -> dict[tuple[int, int], Tensor]:
        """Squared norms of whole columns, few launches each, by column and position."""
        found: dict[tuple[int, int], Tensor] = {}
        for x in wanted:
            column = used[x]
            if callable(column):
                continue
            there = {
                i: t
                for i in range(len(column))
                if (t := column[i]) is not None and t.dtype == self.dtype
            }
            if there:
                squares = torch.stack(torch._foreach_norm(list(there.values()))).square()
                found |= zip([(x, i) for i in there], squares.unbind(0), strict=True)
        return found

    def _numels(self, columns: Mapping[str, Column]) -> list[int]:
        """Entries of every tensor here; 0 where no column has it."""
        first, *others = [column for column in columns.values() if not callable(column)]
        return [
            next((t.numel() for column in others if (t := column[i]) is not None), 0)
            if tensor is None
            else tensor.numel()
            for i, tensor in enumerate(first)
        ]

    def _zeros(self, vector: Tensor | None, columns: Mapping[str, Column], i: int) -> Tensor:
        """How many entries are 0: all of them where a gradient or moment is missing."""
        if vector is not None:
            return (vector == 0).sum().to(self.zero)
        param = cast(Sequence[Tensor], columns["param"])[i]
        return self.zero + param.numel()

    def group_products(self, columns: Mapping[str, Column], pairs: Sequence[Pair]) -> list[Tensor]:
        """Inner products of the groups' concatenated tensors, [G] for each pair."""
        with full_precision(self.device):
            return [product @ self.sum for product in self.products(columns, pairs).values()]


def _tensors(
    param_groups: Sequence[Mapping[str, Any]],
) -> list[tuple[int, torch.device, torch.dtype]]:
    return [(id(p), p.device, p.dtype) for group in param_groups for p in group["params"]]


def _reals(param: Tensor) -> int:
    """Real numbers in a parameter."""
    return param.numel() * (2 if param.is_complex() else 1)


def flat(tensor: Tensor) -> Tensor:
    """One-dimensional, and in float32 if it is in half precision."""
    vector = tensor.reshape(-1)
    return vector.float() if vector.dtype in (torch.bfloat16, torch.float16) else vector


def cosines(products: Tensor, x_norms: Tensor, y_norms: Tensor) -> Tensor:
    """Cosines from inner products and norms; 0 where a norm is 0."""
    # Dividing twice keeps ‖x‖‖y‖ from underflowing.
    tiny = torch.finfo(products.dtype).tiny
    return products / x_norms.clamp_min(tiny) / y_norms.clamp_min(tiny)
