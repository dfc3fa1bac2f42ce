"""Multi30k, task 1: captions of Flickr photographs in German and English, one sentence each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metaadamw_bench.data.files import DataSet, File, Layout, read_text
from metaadamw_bench.data.text import Sentences

_SOURCE = (
    "https://raw.githubusercontent.com/multi30k/dataset/"
    "a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw/"
)
_TRAIN = (
    "sha256:726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
    "sha256:d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
)
_VAL = (
    "sha256:f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
    "sha256:14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
)
_TEST = (
    "sha256:9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
    "sha256:611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
)


@dataclass(frozen=True)
class Pairs:
    """German sentences and their English translations, as words between spaces."""

    german: Sentences
    english: Sentences


@dataclass(frozen=True)
class Multi30k:
    """The words of both languages under one numbering, and the three parts."""

    words: list[str]
    train: Pairs
    val: Pairs
    test: Pairs


def _read(paths: Sequence[Path]) -> Multi30k:
    numbers: dict[str, int] = {}
    sides = [
        Sentences.of([line.split() for line in read_text(path).split("\n")[:-1]], numbers)
        for path in paths
    ]
    pairs = [Pairs(*sides[start : start + 2]) for start in (0, 2, 4)]
    return Multi30k(list(numbers), *pairs)


def _layout(name: str, test: str, source: str | None) -> Layout[Multi30k]:
    return Layout(
        name,
        tuple(
            File(file := f"{part}.{language}.gz", digest, source and source + file)
            for part, digests in (("train", _TRAIN), ("val", _VAL), (test, _TEST))
            for language, digest in zip(("de", "en"), digests, strict=True)
        ),
        _read,
    )


DATA_SET: DataSet[Multi30k] = DataSet(
    "multi30k",
    (
        _layout("re-named", "test2016", None),
        _layout("published", "test_2016_flickr", _SOURCE),
    ),
)
