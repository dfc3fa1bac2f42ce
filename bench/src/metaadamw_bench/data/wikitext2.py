"""WikiText-2, the tokenised variant with ``<unk>``: articles of the English Wikipedia."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metaadamw_bench.data.files import DataSet, File, Layout, read_text
from metaadamw_bench.data.text import Sentences

# Official files, so named after unpacking.
_TRAIN = "sha1:863f29c46ef9d167fff4940ec821195882fe29d1"
_VALID = "sha256:f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8"
_TEST = "sha256:d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0"
_SOURCE = (
    "https://raw.githubusercontent.com/pytorch/examples/"
    "77f55b912142e11fcfdf5b530231fb9c52f181e8/word_language_model/data/wikitext-2/"
)


@dataclass(frozen=True)
class WikiText2:
    """The words, and the lines of the three parts in their numbers."""

    words: list[str]
    train: Sentences
    valid: Sentences
    test: Sentences


def _of(texts: Sequence[str]) -> WikiText2:
    numbers: dict[str, int] = {}
    parts = [Sentences.of([line.split() for line in text.split("\n")], numbers) for text in texts]
    return WikiText2(list(numbers), *parts)


def _read(paths: Sequence[Path]) -> WikiText2:
    return _of([read_text(path) for path in paths])


def _read_zip(paths: Sequence[Path]) -> WikiText2:
    with zipfile.ZipFile(paths[0]) as archive:
        return _of(
            [
                archive.read(f"wikitext-2/wiki.{part}.tokens").decode("utf-8")
                for part in ("train", "valid", "test")
            ]
        )


DATA_SET: DataSet[WikiText2] = DataSet(
    "wikitext2",
    (
        # Training articles in another order, otherwise as published.
        Layout(
            "re-packed",
            (
                File(
                    "train.txt.xz",
                    "sha256:d46259d2bb7253768092a125351e2e69a0160f26cb5c466a1a72f905a230320f",
                ),
                File(
                    "valid.txt.xz",
                    "sha256:1322771e23310248961e17b3c55df138cd3e5c57f2e36ac1d131e9c6158ccd74",
                ),
                File(
                    "test.txt.xz",
                    "sha256:306c08b989e77ca6d5587c58d90bf8f8fa3be85671b0eda75315de9f68584fbe",
                ),
            ),
            _read,
        ),
        Layout(
            "published",
            (
                File("train.txt", _TRAIN, _SOURCE + "train.txt"),
                File("valid.txt", _VALID, _SOURCE + "valid.txt"),
                File("test.txt", _TEST, _SOURCE + "test.txt"),
            ),
            _read,
        ),
        Layout(
            "official archive, unpacked",
            (
                File("wikitext-2/wiki.train.tokens", _TRAIN),
                File("wikitext-2/wiki.valid.tokens", _VALID),
                File("wikitext-2/wiki.test.tokens", _TEST),
            ),
            _read,
        ),
        Layout(
            "official archive",
            (
                File(
                    "wikitext-2-v1.zip",
                    "sha256:92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c",
                ),
            ),
            _read_zip,
        ),
    ),
)
