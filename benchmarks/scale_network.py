"""The network whose training in several processes is measured, and its sizes."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks import scale_model

BLOCKS = 4
WIDTHS = {"1e6": 480, "1e7": 1552, "1e8": 4992}
"""Widths of the network that give about so many parameters, divisible by 4 devices and 4 bytes."""


def network(width: int) -> nn.Module:
    """Blocks that are sharded one by one, between two layers that are not."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(BLOCKS)]
    return nn.Sequential(nn.Linear(16, width), *blocks, nn.Linear(width, 16))


def described(width: int) -> scale_model.Model:
    """The network as the cost model sees it."""
    with torch.device("meta"):
        model = network(width)
    block = width * width + width
    parameters = sum(p.numel() for p in model.parameters())
    tensors = len(list(model.parameters()))
    return scale_model.Model(parameters, parameters - BLOCKS * block, tensors)
