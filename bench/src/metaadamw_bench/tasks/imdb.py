"""IMDB: tell positive from negative film reviews."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor
from torch.nn import functional
from torch.utils.data import TensorDataset

from metaadamw_bench.data import load
from metaadamw_bench.data.imdb import DATA_SET, Imdb
from metaadamw_bench.data.text import PAD, padded, vocabulary
from metaadamw_bench.models.sentiment import Sentiment
from metaadamw_bench.tasks.measures import ACCURACY
from metaadamw_bench.tasks.spec import (
    PaperNumbers,
    PreparedTask,
    Protocol,
    Size,
    Splits,
    Task,
    epochs_of,
)
from metaadamw_bench.tasks.splitting import without_copies

# The last training reviews, in order of their number: reviews of a film stay together.
_META_VALIDATION = slice(20_000, 22_500)
_VALIDATION = slice(22_500, 25_000)
_MINIMUM = 5


@dataclass(frozen=True)
class _Shape:
    words: int
    length: int
    embedding: int
    width: int
    epochs: int
    lr: float
    train: int | None = None


_SHAPES: dict[Size, _Shape] = {
    "full": _Shape(25_000, 256, embedding=32, width=64, epochs=10, lr=5e-4),
    # AdamW's best validation accuracy in 10 epochs, seeds 0 and 1: lr 5e-4 69.9 % and 70.6 %,
    # 2e-3 73.7 % and 75.0 %, 8e-3 74.5 % (seed 0 alone), then overfitting. About 45 s a run.
    "small": _Shape(5_000, 100, embedding=16, width=32, epochs=10, lr=2e-3, train=10_000),
}
_PAPER_EPOCHS = {"adamw": 50, "metaadamw": 15}
_max_epochs = epochs_of({size: shape.epochs for size, shape in _SHAPES.items()}, _PAPER_EPOCHS)
_PAPER_NOTES = (
    "the test set is the validation set: it stops the run, picks the epoch and, with its labels, "
    "is the meta-validation part",
    "123 reviews are in both; 96 occur twice in the training and 199 in the validation part",
    "states are read after the padding on the right",
)
_SMALL_NOTES = (
    "small: 5,000 words instead of 25,000, reviews cut at 100 words instead of 256, embedding 16 "
    "and width 32 instead of 32 and 64, the first 10,000 training reviews; lr chosen for AdamW on "
    "the meta-validation part among 5e-4, 2e-3 and 8e-3, seed 0",
)


def _splits(data: Imdb, protocol: Protocol, shape: _Shape) -> Splits:
    paper = protocol == "paper"
    count = len(data.train.labels) if paper else _META_VALIDATION.start
    counted = data.train.texts.part(0, count)
    table = vocabulary(data.words, counted, size=shape.words, minimum=_MINIMUM)
    train, test = (
        (padded(part.texts.renumbered(table), shape.length), part.labels)
        for part in (data.train, data.test)
    )

    def part(whole: tuple[Tensor, Tensor], chosen: slice) -> TensorDataset:
        return TensorDataset(*(tensor[chosen] for tensor in whole))

    first = part(train, slice(shape.train or count))
    whole_test = part(test, slice(None))
    if paper:
        return Splits(first, whole_test, whole_test)
    return without_copies(
        Splits(first, part(train, _META_VALIDATION), part(train, _VALIDATION), whole_test)
    )


def _build(protocol: Protocol, size: Size, data_dir: Path | None) -> PreparedTask:
    shape = _SHAPES[size]
    paper = protocol == "paper"
    return PreparedTask(
        name="imdb",
        protocol=protocol,
        size=size,
        splits=_splits(load(DATA_SET, data_dir), protocol, shape),
        build_model=partial(Sentiment, shape.words, PAD, shape.embedding, shape.width),
        loss=functional.cross_entropy,
        metric=ACCURACY,
        batch_size=64,
        max_epochs=_max_epochs(protocol, size),
        patience=2 if paper else None,
        min_delta=1e-3,
        lr=shape.lr,
        weight_decay=1e-2,
        notes=(*(_PAPER_NOTES if paper else ()), *(_SMALL_NOTES if size == "small" else ())),
    )


TASK = Task(
    name="imdb",
    title="IMDB sentiment, bidirectional LSTM",
    data=(
        "Large Movie Review Dataset: 25,000 training and 25,000 test reviews, half positive; "
        "torchtext's basic_english words"
    ),
    metric=ACCURACY,
    build=_build,
    max_epochs=_max_epochs,
    data_set="imdb",
    paper=PaperNumbers(adamw=74.53, metaadamw=82.79),
)
