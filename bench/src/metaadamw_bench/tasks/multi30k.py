"""Multi30k: translate captions from German to English."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from metaadamw_bench.data import load
from metaadamw_bench.data.multi30k import DATA_SET, Multi30k, Pairs
from metaadamw_bench.data.text import PAD, Sentences, padded, vocabulary
from metaadamw_bench.models.translator import Translator
from metaadamw_bench.tasks.measures import PERPLEXITY, count_words, word_cross_entropy
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

_BEGIN, _END, _SPECIALS = 2, 3, 4
_META_VALIDATION = 1_000


@dataclass(frozen=True)
class _Shape:
    words: int
    length: int
    width: int
    heads: int
    layers: int
    batch_size: int
    epochs: int
    lr: float
    train: int | None = None


_SHAPES: dict[Size, _Shape] = {
    "full": _Shape(10_000, 64, 256, 8, 4, batch_size=64, epochs=25, lr=5e-4),
    # AdamW's validation perplexity after 6 epochs: lr 5e-4 29.5, 2e-3 19.3, 8e-3 95.7 with seed 0,
    # 2e-3 19.0 with seed 1.
    # About 80 s a run.
    "small": _Shape(2_000, 24, 64, 4, 2, batch_size=32, epochs=6, lr=2e-3, train=9_600),
}
_PAPER_EPOCHS = {"adamw": 50, "metaadamw": 25}
_max_epochs = epochs_of({size: shape.epochs for size, shape in _SHAPES.items()}, _PAPER_EPOCHS)
_PAPER_NOTES = (
    "one vocabulary, built from the German side, serves both languages: two English words in three "
    "are unknown, so the perplexity is about 2 and says little about translation",
    "no padding masks; sentences are padded to the longest of their batch",
    "words are what stands between spaces; the authors' runs may have used spaCy's tokeniser",
    "the meta-validation part is the validation part; there is no test part",
)
_SMALL_NOTES = (
    "small: 2,000 words a language instead of 10,000, sentences cut at 24 instead of 64, 2 layers "
    "of width 64 and 4 heads instead of 4 layers of width 256 and 8 heads, batches of 32 instead "
    "of 64, the first 9,600 training pairs; lr chosen for AdamW on the meta-validation part among "
    "5e-4, 2e-3 and 8e-3, seed 0",
)


class PairDataset(TensorDataset):
    """Padded source and target sentences; a batch is no wider than its longest sentence.

    A batch holds the source, the target without its end, and the target without its beginning.
    """

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        """The batch of examples ``index``."""
        source, target = (
            rows[..., : int((rows != PAD).view(-1, rows.shape[-1]).any(0).count_nonzero())]
            for rows in super().__getitem__(index)  # type: ignore[no-untyped-call]
        )
        return source, target[..., :-1], target[..., 1:]


def _framed(sentences: Sentences, length: int) -> Tensor:
    """Rows "BEGIN words END PAD …", the words cut where they are too many."""
    words = padded(sentences, length - 2)
    rows = nn.functional.pad(words, (1, 1), value=PAD)
    rows[:, 0] = _BEGIN
    rows[torch.arange(len(rows)), sentences.lengths.clamp(max=length - 2) + 1] = _END
    return rows


@dataclass(frozen=True)
class _Encoder:
    """The vocabularies of both sides and what they make of sentences."""

    source: Tensor
    target: Tensor
    length: int

    def __call__(self, pairs: Pairs, start: int = 0, stop: int | None = None) -> PairDataset:
        stop = len(pairs.german.lengths) if stop is None else stop
        return PairDataset(
            _framed(pairs.german.part(start, stop).renumbered(self.source), self.length),
            _framed(pairs.english.part(start, stop).renumbered(self.target), self.length),
        )


def _sizes(encoder: _Encoder) -> tuple[int, int]:
    return int(encoder.source.max()) + 1, int(encoder.target.max()) + 1


def _splits(text: Multi30k, protocol: Protocol, shape: _Shape) -> tuple[Splits, _Encoder]:
    count = len(text.train.german.lengths) - (_META_VALIDATION if protocol == "clean" else 0)

    def words_of(sentences: Sentences) -> Tensor:
        counted = sentences.part(0, count)
        return vocabulary(text.words, counted, size=shape.words, specials=_SPECIALS, minimum=2)

    german = words_of(text.train.german)
    english = german if protocol == "paper" else words_of(text.train.english)
    encode = _Encoder(german, english, shape.length)
    train = encode(text.train, 0, shape.train or count)
    validation = encode(text.val)
    if protocol == "paper":
        return Splits(train, validation, validation), encode
    meta_validation = encode(text.train, count)
    splits = Splits(train, meta_validation, validation, encode(text.test))
    return without_copies(splits), encode


def _build(protocol: Protocol, size: Size, data_dir: Path | None) -> PreparedTask:
    shape = _SHAPES[size]
    paper = protocol == "paper"
    splits, encoder = _splits(load(DATA_SET, data_dir), protocol, shape)
    source, target = _sizes(encoder)
    return PreparedTask(
        name="multi30k",
        protocol=protocol,
        size=size,
        splits=splits,
        build_model=partial(
            Translator,
            source,
            None if paper else target,
            None if paper else PAD,
            shape.length,
            shape.width,
            shape.heads,
            shape.layers,
        ),
        loss=word_cross_entropy,
        scored=count_words,
        metric=PERPLEXITY,
        batch_size=shape.batch_size,
        max_epochs=_max_epochs(protocol, size),
        patience=2 if paper else None,
        min_delta=1e-3,
        lr=shape.lr,
        weight_decay=1e-2,
        notes=(*(_PAPER_NOTES if paper else ()), *(_SMALL_NOTES if size == "small" else ())),
    )


TASK = Task(
    name="multi30k",
    title="Multi30k German–English, Transformer",
    data=(
        "Multi30k, task 1: 29,000 training, 1,014 validation and 1,000 test captions (2016) in "
        "German and English; words are what stands between spaces, at least twice in training"
    ),
    metric=PERPLEXITY,
    build=_build,
    max_epochs=_max_epochs,
    data_set="multi30k",
    paper=PaperNumbers(adamw=2.0297, metaadamw=1.9690),
)
