"""Two photographs that travel inside scikit-learn, and a small network that removes noise."""

from __future__ import annotations

import itertools
import math
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from metaadamw_bench.tasks.spec import (
    Batch,
    Metric,
    PreparedTask,
    Protocol,
    Size,
    Splits,
    Task,
    equal_epochs,
)

_SIDE = 16
_NOISE = 0.1
# Whole columns of patches go to one split, so that few have neighbours in another.
_COLUMNS = (28, 4, 4, 4)
_EPOCHS = 15


class Denoiser(nn.Module):
    """Four convolutions that estimate the noise, which is then subtracted."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        channels = (3, width, width, width, 3)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=3, padding=1)
            for before, after in itertools.pairwise(channels)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map noisy images ``[N, 3, H, W]`` to clean ones."""
        hidden = images
        for convolution in self.convolutions[:-1]:
            hidden = functional.relu(convolution(hidden))
        clean: Tensor = images - self.convolutions[-1](hidden)
        return clean


def add_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise with a standard deviation of a tenth of the range of values."""
    return images + _NOISE * torch.randn(images.shape, generator=generator)


def noisy(batch: Batch, generator: torch.Generator) -> Batch:
    """Fresh noise at every visit of a training patch, whose target is the patch itself."""
    _, clean = batch
    return add_noise(clean, generator), clean


@cache
def load() -> Splits:
    """Cut the photographs into patches; those that are not trained on have noise of their own."""
    from sklearn.datasets import load_sample_images

    columns = []
    for image in load_sample_images().images:
        pixels = torch.tensor(image, dtype=torch.float32).permute(2, 0, 1) / 255
        patches = pixels.unfold(1, _SIDE, _SIDE).unfold(2, _SIDE, _SIDE)  # [3, rows, columns, …]
        columns.append(patches.permute(2, 1, 0, 3, 4))
    both = torch.cat(columns, dim=1)  # [columns, rows of both, 3, side, side]
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(both), generator=generator)
    parts = [both[part].flatten(0, 1).contiguous() for part in order.split(list(_COLUMNS))]
    return Splits(*(TensorDataset(add_noise(part, generator), part) for part in parts))


METRIC = Metric(name="PSNR, dB", direction="maximize", finish=lambda mse: -10 * math.log10(mse))


def build(protocol: Protocol, size: Size, data_dir: Path | None) -> PreparedTask:
    """Everything a run needs; the data directory is not."""
    return PreparedTask(
        name="photos",
        protocol=protocol,
        size=size,
        splits=load(),
        build_model=Denoiser,
        loss=functional.mse_loss,
        metric=METRIC,
        batch_size=32,
        drop_last=True,
        max_epochs=equal_epochs(_EPOCHS),
        patience=None,
        # The best for AdamW on the validation part among 1e-3, 3e-3, 1e-2, on the tuning seed.
        lr=3e-3,
        weight_decay=1e-2,
        augment=noisy,
    )


TASK = Task(
    name="photos",
    title="noise removed from photographs, small CNN",
    data=(
        "scikit-learn's load_sample_images: two photographs of 427 × 640 pixels in patches of "
        "16 × 16; 1,456 train, 208 meta-validation, 208 validation, 208 test, by columns of patches"
    ),
    metric=METRIC,
    build=build,
    max_epochs=lambda protocol, size: equal_epochs(_EPOCHS),
    protocols=("clean",),
    sizes=("small",),
)
