"""The residual network that classifies CIFAR-10."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ResNet"]

# Of the training images' channels, in units of the full range.
_MEAN = (0.4914, 0.4822, 0.4465)
_DEVIATION = (0.2023, 0.1994, 0.2010)


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, images: Tensor) -> Tensor:
        """Map ``[N, in_channels, H, W]`` to ``[N, channels, H / stride, W / stride]``."""
        hidden = functional.relu(self.bn1(self.conv1(images)))
        return functional.relu(self.bn2(self.conv2(hidden)) + self.downsample(images))


class ResNet(nn.Module):
    """ResNet for small images: 3 × 3 stem, no max-pooling; by default ResNet-18.

    Args:
        width: channels of the first stage; each stage doubles them and halves the image.
        blocks: blocks of each stage.
        dropout: share of dropped logits, as the authors have it.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, width: int = 64, blocks: tuple[int, ...] = (2, 2, 2, 2), dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer(
            "deviation", 255 * torch.tensor(_DEVIATION).view(3, 1, 1), persistent=False
        )
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for stage, count in enumerate(blocks):
            layers = []
            for index in range(count):
                stride = 2 if stage and not index else 1
                layers.append(Block(channels, width << stage, stride))
                channels = width << stage
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.stages = len(blocks)
        self.fc = nn.Linear(channels, 10)
        self.dropout = nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``[N, 3, 32, 32]`` from 0 to 255 to logits ``[N, 10]``."""
        hidden = (images - self.mean) / self.deviation
        hidden = functional.relu(self.bn1(self.conv1(hidden)))
        for stage in range(self.stages):
            hidden = getattr(self, f"layer{stage + 1}")(hidden)
        logits: Tensor = self.dropout(self.fc(hidden.mean(dim=(2, 3))))
        return logits
