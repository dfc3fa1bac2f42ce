"""Which tensor belongs to which group, and sums over the tensors of a group."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metaadamw.groups import is_bias, normalized_depths

__all__ = ["Layout", "cosines", "inner_product"]


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
        self.param_ids = tuple(id(p) for group in param_groups for p in group["params"])
        self.device, self.dtype = device, dtype
        self.sizes = counts
        self.group_of = torch.tensor(group_of, dtype=torch.long, device=device)
        # Sums and means over the tensors of a group are one small matrix product.
        membership = torch.zeros(len(counts), len(group_of), dtype=dtype)
        for row, start, n in zip(
            range(len(counts)), itertools.accumulate([0, *counts]), counts, strict=False
        ):
            membership[row, start : start + n] = 1.0
        self.sum = membership.to(device).T.contiguous()  # [P, G]
        self.mean = self.sum / self.sum.sum(0).clamp_min(1.0)

        numels = [
            float(sum(p.numel() * (2 if p.is_complex() else 1) for p in group["params"]))
            for group in param_groups
        ]
        self.numel = self._column(numels).clamp_min(1.0)  # [G]
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
        self.bias_ratio = self._column(biases)
        self.depth = self._column(depths)

    def _column(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=self.dtype, device=self.device)

    def fits(self, param_groups: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the param groups still hold the tensors this layout was made for."""
        return self.param_ids == tuple(id(p) for group in param_groups for p in group["params"])

    def stack(self, values: Sequence[Tensor]) -> Tensor:
        """Scalars of any device and precision as one vector."""
        return torch.stack(
            [
                v
                if v.dtype == self.dtype and v.device == self.device
                else v.to(device=self.device, dtype=self.dtype, non_blocking=True)
                for v in values
            ]
        )

    def products(self, *pairs: tuple[Sequence[Tensor | None], Sequence[Tensor | None]]) -> Tensor:
        """Inner products of the tensors of each pair of lists, [len(pairs), P]; None counts as 0.

        All products of one tensor are taken together, while it is in the cache.
        """
        zero = torch.zeros((), dtype=self.dtype, device=self.device)
        rows = zip(*(zip(xs, ys, strict=True) for xs, ys in pairs), strict=True)
        values = [
            zero if x is None or y is None else inner_product(x, y) for row in rows for x, y in row
        ]
        if not values:
            return zero.expand(len(pairs), 0)
        return self.stack(values).view(-1, len(pairs)).T

    def group_products(
        self, *pairs: tuple[Sequence[Tensor | None], Sequence[Tensor | None]]
    ) -> Tensor:
        """Inner products of the groups' concatenated tensors: [len(pairs), G]."""
        return self.products(*pairs) @ self.sum


def inner_product(x: Tensor, y: Tensor) -> Tensor:
    """Sum of the products of the entries, a scalar; half precision is accumulated in float32.

    It also serves for squared norms: on a CPU ``dot`` runs at the memory's speed, not so ``norm``.
    """
    x, y = x.reshape(-1), y.reshape(-1)
    if x.dtype != y.dtype or x.dtype in (torch.bfloat16, torch.float16):
        dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        x, y = x.to(dtype), y.to(dtype)
    return torch.dot(x, y)


def cosines(products: Tensor, x_norms: Tensor, y_norms: Tensor) -> Tensor:
    """Cosines from inner products and norms; 0 where a norm is 0."""
    # Dividing twice keeps ‖x‖‖y‖ from underflowing.
    tiny = torch.finfo(products.dtype).tiny
    return products / x_norms.clamp_min(tiny) / y_norms.clamp_min(tiny)
