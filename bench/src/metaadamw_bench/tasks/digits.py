"""Handwritten digits that travel inside scikit-learn, and a small convolutional network."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from metaadamw_bench.tasks.measures import ACCURACY
from metaadamw_bench.tasks.spec import (
    PreparedTask,
    Protocol,
    Size,
    Splits,
    Task,
    equal_epochs,
)

_META_VALIDATION = 200
_VALIDATION = 1000
_EPOCHS = 33


class Block(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``[N, in_channels, H, W]`` to ``[N, out_channels, H, W]``."""
        return functional.relu(self.norm(self.conv(images)))


class DigitsNet(nn.Module):
    """Three blocks, the image halved after each of the first two, and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(1, 16), Block(16, 32), Block(32, 64)])
        self.classifier = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``[N, 1, 8, 8]`` to logits ``[N, 10]``."""
        first, second, third = self.blocks
        features = functional.max_pool2d(first(images), 2)
        features = functional.max_pool2d(second(features), 2)
        logits: Tensor = self.classifier(third(features).mean(dim=(2, 3)))
        return logits


@cache
def load() -> Splits:
    """Split the 1,797 images into 597, 200 and 1,000 by one fixed permutation."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    parts = order.split(
        [len(order) - _META_VALIDATION - _VALIDATION, _META_VALIDATION, _VALIDATION]
    )
    return Splits(*(TensorDataset(images[part], labels[part]) for part in parts))


def build(protocol: Protocol, size: Size, data_dir: Path | None) -> PreparedTask:
    """Everything a run needs; the data directory is not."""
    return PreparedTask(
        name="digits",
        protocol=protocol,
        size=size,
        splits=load(),
        build_model=DigitsNet,
        loss=functional.cross_entropy,
        metric=ACCURACY,
        batch_size=64,
        drop_last=True,
        max_epochs=equal_epochs(_EPOCHS),
        patience=None,
        # The best for AdamW on the meta-validation part among 1e-3, 3e-3, 1e-2, 3e-2.
        lr=1e-2,
        weight_decay=1e-2,
    )


TASK = Task(
    name="digits",
    title="handwritten digits, small CNN with batch norm",
    data=(
        "scikit-learn's load_digits: 1,797 handwritten digits of 8 × 8 pixels (UCI optdigits, "
        "test part); 597 train, 200 meta-validation, 1,000 validation"
    ),
    metric=ACCURACY,
    build=build,
    max_epochs=lambda protocol, size: equal_epochs(_EPOCHS),
    protocols=("clean",),
    sizes=("small",),
)
