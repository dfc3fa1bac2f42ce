"""No attention: the factors of every group learned by themselves, for comparison."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metaadamw.config import ModulatorConfig
from metaadamw.modulator import BaseModulator, rows_at

__all__ = ["GroupScalars"]


class GroupScalars(BaseModulator):
    """No attention: raw outputs that belong to one group each, whatever the features are.

    What the same signal achieves without the Transformer; it takes its place with ``layers=0``.

    Args:
        names: of the G groups.
        config: ranges and scale.
    """

    def __init__(
        self,
        names: Sequence[str],
        config: ModulatorConfig,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(config)
        self.raw = nn.Parameter(torch.zeros(0, 4, device=device, dtype=dtype))
        self.regroup(names, [None] * len(names))

    def regroup(self, names: Sequence[str], before: Sequence[int | None]) -> None:
        """Let new groups begin at α = alpha_start, β = 1; the others keep their raw outputs."""
        rows = rows_at(self.raw.detach(), before)
        for row, name, i in zip(rows, names, before, strict=True):
            if i is None:
                row[0] = self.config.raw_start(name)
        self.raw = nn.Parameter(rows)

    @torch.no_grad()
    def hold_mean(self, before: Tensor, told: Tensor) -> None:
        """Take back what raw α has moved by on average; of groups told nothing, all of it.

        Args:
            before: the raw outputs before they moved, [G, 4].
            told: the groups whose signal was not 0, [G], boolean.
        """
        after = self.raw[:, 0]
        mean = ((after - before[:, 0]) * told).sum() / told.sum().clamp_min(1)
        self.raw[:, 0] = torch.where(told, after - mean, before[:, 0])

    def penalty(self, weight_decay: float, gate_sparsity: float) -> Tensor:
        """The distance from α = β = 1; there are no gates."""
        norm: Tensor = torch.linalg.vector_norm(self.raw)
        return weight_decay * norm

    def raw_outputs(self, features: Tensor, *, once_differentiable: bool = False) -> Tensor:
        """The raw outputs, [G, 4]; of the features only their number of rows is read.

        Raises:
            ValueError: the number of rows is not G.
        """
        if len(features) != len(self.raw):
            raise ValueError(f"features must have {len(self.raw)} rows, got {len(features)}")
        return self.raw
