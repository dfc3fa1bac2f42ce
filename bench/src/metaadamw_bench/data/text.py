"""Sentences as numbers: words, vocabularies, padding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["PAD", "UNKNOWN", "Sentences", "padded", "vocabulary"]

PAD, UNKNOWN = 0, 1


@dataclass(frozen=True)
class Sentences:
    """Word numbers of many sentences, laid end to end, and the length of each sentence."""

    tokens: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, sentences: Iterable[Sequence[str]], numbers: dict[str, int]) -> Sentences:
        """Number the words of sentences; a word that is not in ``numbers`` yet is put there."""
        tokens: list[int] = []
        lengths: list[int] = []
        for sentence in sentences:
            lengths.append(len(sentence))
            tokens.extend([numbers.setdefault(word, len(numbers)) for word in sentence])
        return cls(torch.tensor(tokens, dtype=torch.int32), torch.tensor(lengths))

    def part(self, start: int, stop: int) -> Sentences:
        """The sentences from ``start`` up to, but without, ``stop``."""
        first, last = int(self.lengths[:start].sum()), int(self.lengths[:stop].sum())
        return Sentences(self.tokens[first:last], self.lengths[start:stop])

    def renumbered(self, table: Tensor) -> Sentences:
        """The same sentences with every word number looked up in ``table``."""
        return Sentences(table[self.tokens.long()], self.lengths)


def vocabulary(
    words: Sequence[str],
    sentences: Sentences,
    *,
    size: int,
    specials: int = 2,
    minimum: int = 1,
    excluded: Sequence[str] = (),
) -> Tensor:
    """Give the most frequent words numbers of their own, and ``UNKNOWN`` to all the others.

    Args:
        words: every word by its present number.
        sentences: what is counted; usually the training part.
        size: at most so many numbers, those of PAD, UNKNOWN and the like included.
        specials: how many numbers are kept free for PAD, UNKNOWN and the like.
        minimum: a rarer word is unknown.
        excluded: these words are unknown however frequent.

    Returns:
        The new number of each word. More frequent words have lower numbers; words that are
        equally frequent are taken in alphabetical order, so that the order of the sentences
        does not matter.
    """
    counts = torch.bincount(sentences.tokens, minlength=len(words)).tolist()
    eligible = [
        number
        for number, word in enumerate(words)
        if counts[number] >= minimum and word not in excluded
    ]
    eligible.sort(key=lambda number: (-counts[number], words[number]))
    kept = eligible[: size - specials]
    table = torch.full((len(words),), UNKNOWN)
    table[kept] = torch.arange(specials, specials + len(kept))
    return table


def padded(sentences: Sentences, width: int) -> Tensor:
    """Sentences as rows ``[N, width]``: cut where they are longer, else PAD on the right."""
    column = torch.arange(width)
    starts = sentences.lengths.cumsum(0) - sentences.lengths
    inside = column < sentences.lengths[:, None]
    rows = torch.full(inside.shape, PAD)
    rows[inside] = sentences.tokens[(starts[:, None] + column)[inside]].long()
    return rows
