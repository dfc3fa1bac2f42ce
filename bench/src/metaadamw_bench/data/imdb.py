"""IMDB, the Large Movie Review Dataset: 50,000 reviews, half of them positive."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaadamw_bench.data.cache import cached
from metaadamw_bench.data.files import DataSet, File, Layout, read_text
from metaadamw_bench.data.text import Sentences

_TRAIN = "sha256:e468ff02633e5f59381d050077fd3a4e43a9908bf525eb06c6a13a99c4c77827"
_TEST = "sha256:0fe8701ac72e699ea6ab74635b79d5d03ca19668f6cac36f983ebc8b418d9e26"
_ARCHIVE = "sha256:c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"
_CLASSES = ("neg", "pos")
_MEMBER = re.compile(r"aclImdb/(train|test)/(neg|pos)/(\d+)_\d+\.txt")
# Of the tokeniser; a new one makes what is kept in the cache worthless.
_VERSION = "1"


@dataclass(frozen=True)
class Reviews:
    """Reviews in word numbers, and 1 for a positive, 0 for a negative one."""

    texts: Sentences
    labels: Tensor


@dataclass(frozen=True)
class Imdb:
    """The words, and both parts; reviews alternate negative, positive, in order of their number.

    Neighbouring reviews of a class are mostly of the same film.
    """

    words: list[str]
    train: Reviews
    test: Reviews


def basic_english(text: str) -> list[str]:
    """Cut a text into words as torchtext's tokeniser of this name does."""
    text = text.lower().replace('"', "").replace("<br />", " ")
    for mark in ".,()!?'":
        text = text.replace(mark, f" {mark} ")
    return text.replace(";", " ").replace(":", " ").split()


def _of(parts: Sequence[Sequence[tuple[int, str]]]) -> dict[str, Any]:
    numbers: dict[str, int] = {}
    content: dict[str, Any] = {}
    for name, rows in zip(("train", "test"), parts, strict=True):
        texts = Sentences.of((basic_english(text) for _, text in rows), numbers)
        labels = torch.tensor([label for label, _ in rows])
        content[name] = (texts.tokens, texts.lengths, labels)
    content["words"] = list(numbers)
    return content


def _rows(text: str) -> list[tuple[int, str]]:
    """Lines "label, tab, review"; the reviews hold tabs and unusual line separators as well."""
    rows = (line.split("\t", 1) for line in text.split("\n")[:-1])
    return [(int(label), review) for label, review in rows]


def _archive_rows(path: Path) -> Iterator[list[tuple[int, str]]]:
    """Reviews of the official archive, from files ``aclImdb/PART/CLASS/NUMBER_STARS.txt``."""
    reviews: dict[tuple[str, int, int], str] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            match = _MEMBER.fullmatch(member.name)
            stream = archive.extractfile(member) if match else None
            if match and stream is not None:
                part, label, number = match[1], _CLASSES.index(match[2]), int(match[3])
                reviews[part, number, label] = stream.read().decode("utf-8")
    for wanted in ("train", "test"):
        yield [(key[2], reviews[key]) for key in sorted(reviews) if key[0] == wanted]


def _read(digest: str, rows: Callable[[], list[list[tuple[int, str]]]]) -> Imdb:
    content = cached("imdb", [_VERSION, digest], lambda: _of(rows()))
    parts = [
        Reviews(Sentences(tokens, lengths), labels)
        for tokens, lengths, labels in (content["train"], content["test"])
    ]
    return Imdb(content["words"], *parts)


def _read_tables(paths: Sequence[Path]) -> Imdb:
    return _read(_TRAIN + _TEST, lambda: [_rows(read_text(path)) for path in paths])


def _read_archive(paths: Sequence[Path]) -> Imdb:
    return _read(_ARCHIVE, lambda: list(_archive_rows(paths[0])))


DATA_SET: DataSet[Imdb] = DataSet(
    "imdb",
    (
        Layout(
            "re-packed", (File("train.tsv.xz", _TRAIN), File("test.tsv.xz", _TEST)), _read_tables
        ),
        Layout(
            "published",
            (
                File(
                    "aclImdb_v1.tar.gz",
                    _ARCHIVE,
                    "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
                ),
            ),
            _read_archive,
        ),
    ),
)
