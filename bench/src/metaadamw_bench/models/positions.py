"""Sinusoidal positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["Positions"]


class Positions(nn.Module):
    """Adds sine and cosine of the position, at wavelengths from 2π to 2π · 10,000."""

    table: Tensor

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        frequencies = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
        angles = torch.arange(length)[:, None] * frequencies
        table = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
        self.register_buffer("table", table, persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Add them to ``[N, T, width]``."""
        return hidden + self.table[: hidden.shape[1]]
