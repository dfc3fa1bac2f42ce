"""WikiText-2: predict the next word of Wikipedia articles."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from metaadamw_bench.data import load
from metaadamw_bench.data.text import Sentences, vocabulary
from metaadamw_bench.data.wikitext2 import DATA_SET, WikiText2
from metaadamw_bench.models.language_model import LanguageModel
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

_META_VALIDATION_SHARE = 0.05


@dataclass(frozen=True)
class _Shape:
    words: int
    block: int
    width: int
    batch_size: int
    epochs: int
    lr: float
    train: int | None = None
    validation: int | None = None


_SHAPES: dict[Size, _Shape] = {
    "full": _Shape(words=10_000, block=128, width=128, batch_size=64, epochs=15, lr=5e-4),
    # AdamW's validation perplexity after 6 epochs: lr 5e-4 47.1, 2e-3 43.1, 8e-3 51.3 with seed 0,
    # 2e-3 41.9 with seed 1.
    # About 80 s a run.
    "small": _Shape(
        words=2_000,
        block=64,
        width=64,
        batch_size=32,
        epochs=6,
        lr=2e-3,
        train=6_400,
        validation=1_000,
    ),
}
_PAPER_EPOCHS = {"adamw": 50, "metaadamw": 15}
_max_epochs = epochs_of({size: shape.epochs for size, shape in _SHAPES.items()}, _PAPER_EPOCHS)
_PAPER_NOTES = (
    "the meta-validation part is the validation part; there is no test part",
    "each line is cut on its own and the remainder dropped: short lines are never seen",
)
_SMALL_NOTES = (
    "small: 2,000 words instead of 10,000, blocks of 64 instead of 128, width 64 instead of 128, "
    "batches of 32 instead of 64, the first 6,400 training and 1,000 validation blocks; lr chosen "
    "for AdamW on the meta-validation part among 5e-4, 2e-3 and 8e-3, seed 0",
)


def _blocks(lines: Sentences, length: int) -> TensorDataset:
    """Cut each line into blocks, drop the remainders; a block's words but the last, but the first.

    Blocks of a line follow each other, so a line's words are cut at their own remainder only.
    """
    starts = lines.lengths.cumsum(0) - lines.lengths
    counts = lines.lengths // length
    line = torch.arange(len(counts)).repeat_interleave(counts)
    within = torch.arange(len(line)) - (counts.cumsum(0) - counts)[line]
    positions = (starts[line] + within * length)[:, None] + torch.arange(length)
    blocks = lines.tokens[positions].long()
    return TensorDataset(blocks[:, :-1].contiguous(), blocks[:, 1:].contiguous())


def _first_article_after(text: WikiText2, line: int) -> int:
    """The first line from ``line`` on that is an article's title, "= Title ="."""
    mark = text.words.index("=")
    while True:
        words = text.train.part(line, line + 1).tokens.tolist()
        if len(words) > 2 and words[0] == words[-1] == mark and words[1] != mark:
            return line
        line += 1


def _first(part: TensorDataset, count: int | None) -> TensorDataset:
    return part if count is None else TensorDataset(*part[:count])


def _splits(text: WikiText2, protocol: Protocol, shape: _Shape) -> Splits:
    def blocks(lines: Sentences, table: Tensor) -> TensorDataset:
        return _blocks(lines.renumbered(table), shape.block)

    lines = len(text.train.lengths)
    border = lines
    if protocol == "clean":
        border = _first_article_after(text, int((1 - _META_VALIDATION_SHARE) * lines))
    train = text.train.part(0, border)
    table = vocabulary(text.words, train, size=shape.words, excluded=["<unk>"])
    first_train = _first(blocks(train, table), shape.train)
    validation = _first(blocks(text.valid, table), shape.validation)
    if protocol == "paper":
        return Splits(first_train, validation, validation)
    meta_validation = blocks(text.train.part(border, lines), table)
    return without_copies(
        Splits(first_train, meta_validation, validation, blocks(text.test, table))
    )


def _build(protocol: Protocol, size: Size, data_dir: Path | None) -> PreparedTask:
    shape = _SHAPES[size]
    paper = protocol == "paper"
    return PreparedTask(
        name="wikitext2",
        protocol=protocol,
        size=size,
        splits=_splits(load(DATA_SET, data_dir), protocol, shape),
        build_model=partial(LanguageModel, shape.words, shape.block, shape.width),
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
    name="wikitext2",
    title="WikiText-2 language model, small GPT",
    data=(
        "WikiText-2, tokenised variant: 2.1 million words of Wikipedia articles, official split; "
        "each line cut into blocks, remainders dropped; the 9,998 most frequent words and unknown"
    ),
    metric=PERPLEXITY,
    build=_build,
    max_epochs=_max_epochs,
    data_set="wikitext2",
    paper=PaperNumbers(adamw=120.47, metaadamw=115.51),
)
