"""The paper's five models, with random inputs of the right shapes: what they cost, not learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.models import Batch, MiniGPT, cross_entropy, token_batch


@dataclass(frozen=True)
class Task:
    """What an epoch of a task is made of.

    Attributes:
        name: as in ``paper_preset``.
        build: the model.
        batch: a random batch with so many examples.
        loss: ``loss(model, batch)``.
        batch_size: examples of a batch.
        steps: steps of an epoch.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[int], Batch]
    loss: Callable[[nn.Module, Batch], Tensor]
    batch_size: int
    steps: int


def positions(length: int, dim: int) -> Tensor:
    """Sinusoidal position encoding [length, dim]."""
    rate = torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000.0) / dim))
    angle = torch.arange(length).unsqueeze(1) * rate
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


class Forecaster(nn.Module):
    """ETTh1: the next value of a series from its last 96."""

    def __init__(self, length: int = 96, dim: int = 128) -> None:
        super().__init__()
        self.input = nn.Linear(1, dim)
        layer = nn.TransformerEncoderLayer(dim, 4, 512, 0.2, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.output = nn.Linear(dim, 1)
        self.register_buffer("positions", positions(length, dim))

    def forward(self, series: Tensor) -> Tensor:
        return self.output(self.encoder(self.input(series) + self.positions)[:, -1])


class Translator(nn.Module):
    """Multi30k: an encoder and a decoder with one embedding."""

    def __init__(self, vocabulary: int = 8000, dim: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.transformer = nn.Transformer(dim, 8, 4, 4, 1024, 0.2, batch_first=True)
        self.output = nn.Linear(dim, vocabulary)
        self.register_buffer("positions", positions(64, dim))

    def _embed(self, tokens: Tensor) -> Tensor:
        scale = math.sqrt(self.embedding.embedding_dim)
        return self.embedding(tokens) * scale + self.positions[: tokens.shape[1]]

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], target.device)
        decoded = self.transformer(
            self._embed(source), self._embed(target), tgt_mask=mask, tgt_is_causal=True
        )
        return self.output(decoded)


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet18(nn.Module):
    """CIFAR-10: ResNet-18 with a 3×3 stem, no max-pool, dropout on the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        blocks, channels_in = [], 64
        for channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [Residual(channels_in, channels, stride), Residual(channels, channels, 1)]
            channels_in = channels
        self.layers = nn.Sequential(*blocks)
        self.head = nn.Linear(512, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layers(F.relu(self.bn1(self.conv1(images)))).mean((2, 3))
        return F.dropout(self.head(x), 0.2, self.training)


class Classifier(nn.Module):
    """IMDB: a bidirectional LSTM over 256 tokens."""

    def __init__(self, vocabulary: int = 25_000) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 32, padding_idx=0)
        self.lstm = nn.LSTM(32, 64, 2, batch_first=True, dropout=0.2, bidirectional=True)
        self.output = nn.Linear(128, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(self.embedding(tokens))
        return self.output(F.dropout(hidden[-2:].transpose(0, 1).flatten(1), 0.2, self.training))


def squared_error(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error on (inputs, target)."""
    series, target = batch
    return F.mse_loss(model(series), target)


def _translation_batch(n: int) -> Batch:
    # Sentences of 12 tokens on average, padded to the longest of the batch, with BOS and EOS.
    source, (target, following) = torch.randint(8000, (n, 27)), token_batch(8000, n, 27)
    return source, target, following


TASKS = {
    task.name: task
    for task in (
        Task(
            "etth1",
            Forecaster,
            lambda n: (torch.randn(n, 96, 1), torch.randn(n, 1)),
            squared_error,
            batch_size=64,
            steps=217,
        ),
        Task(
            "wikitext2",
            lambda: MiniGPT(dropout=0.2),
            lambda n: token_batch(10_000, n, 127),
            cross_entropy,
            batch_size=64,
            steps=123,
        ),
        Task(
            "multi30k",
            Translator,
            _translation_batch,
            cross_entropy,
            batch_size=64,
            steps=454,
        ),
        Task(
            "cifar10",
            ResNet18,
            lambda n: (torch.randn(n, 3, 32, 32), torch.randint(10, (n,))),
            cross_entropy,
            batch_size=128,
            steps=391,
        ),
        Task(
            "imdb",
            Classifier,
            lambda n: (torch.randint(25_000, (n, 256)), torch.randint(2, (n,))),
            cross_entropy,
            batch_size=64,
            steps=391,
        ),
    )
}
