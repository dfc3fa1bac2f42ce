"""Losses and metrics that several tasks share."""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor
from torch.nn import functional

from metaadamw_bench.data.text import PAD
from metaadamw_bench.tasks.spec import Metric

__all__ = ["ACCURACY", "PERPLEXITY", "count_words", "word_cross_entropy"]


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of examples classified correctly, in percent."""
    return 100 * (logits.argmax(dim=1) == labels).float().mean()


def word_cross_entropy(logits: Tensor, words: Tensor) -> Tensor:
    """Mean cross-entropy in nats over the words of the batch that are not PAD."""
    return functional.cross_entropy(logits.flatten(0, 1), words.flatten(), ignore_index=PAD)


def perplexity(loss: float) -> float:
    """The exponential of a mean cross-entropy; infinite where a float ends."""
    return math.inf if loss > math.log(sys.float_info.max) else math.exp(loss)


def count_words(words: Tensor) -> Tensor:
    """How many words are not PAD."""
    return torch.count_nonzero(words != PAD)


ACCURACY = Metric(name="accuracy, %", direction="maximize", measure=accuracy)
PERPLEXITY = Metric(name="perplexity", direction="minimize", finish=perplexity)
