"""The paper's five models, with random inputs of the right shapes: what they cost, not learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.models import Batch, cross_entropy, token_batch
from metaadamw_bench.models.forecaster import Forecaster
from metaadamw_bench.models.language_model import LanguageModel
from metaadamw_bench.models.resnet import ResNet
from metaadamw_bench.models.sentiment import Sentiment
from metaadamw_bench.models.translator import Translator

WORDS, GERMAN, REVIEWED = 10_000, 8_000, 25_000
"""Vocabularies of WikiText-2, Multi30k (about) and IMDB."""


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


def squared_error(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error on (inputs, target)."""
    series, target = batch
    return functional.mse_loss(model(series), target)


def _translation_batch(n: int) -> Batch:
    # Sentences of 12 tokens on average, padded to the longest of the batch, with BOS and EOS.
    source, (target, following) = torch.randint(GERMAN, (n, 27)), token_batch(GERMAN, n, 27)
    return source, target, following


TASKS = {
    task.name: task
    for task in (
        Task(
            "etth1",
            Forecaster,
            lambda n: (torch.randn(n, 96), torch.randn(n, 1)),
            squared_error,
            batch_size=64,
            steps=217,
        ),
        Task(
            "wikitext2",
            lambda: LanguageModel(WORDS),
            lambda n: token_batch(WORDS, n, 127),
            cross_entropy,
            batch_size=64,
            steps=123,
        ),
        Task(
            "multi30k",
            lambda: Translator(GERMAN),
            _translation_batch,
            cross_entropy,
            batch_size=64,
            steps=454,
        ),
        Task(
            "cifar10",
            ResNet,
            lambda n: (255 * torch.rand(n, 3, 32, 32), torch.randint(10, (n,))),
            cross_entropy,
            batch_size=128,
            steps=391,
        ),
        Task(
            "imdb",
            lambda: Sentiment(REVIEWED),
            lambda n: (torch.randint(REVIEWED, (n, 256)), torch.randint(2, (n,))),
            cross_entropy,
            batch_size=64,
            steps=391,
        ),
    )
}
