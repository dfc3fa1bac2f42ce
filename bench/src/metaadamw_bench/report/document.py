"""What a report is made of, independent of how it is written down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

__all__ = [
    "Block",
    "Details",
    "Figure",
    "Result",
    "Section",
    "Table",
    "Text",
    "Tone",
    "Verdict",
    "Words",
]

Tone = Literal["plain", "better", "worse", "muted", "heading"]


class Text(NamedTuple):
    """A table's cell with a tone; lines after the first are smaller."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        title: its title, if the heading above does not say it.
        header: names of the columns.
        rows: the cells; a row of one cell is a heading inside the table.
        note: what a reader has to know to read it.
        commands: how to make it again.
        paper_columns: the columns that hold the paper's numbers, not ours.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Text]]
    note: str = ""
    commands: Sequence[str] = ()
    paper_columns: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture, drawn when its image is first asked for."""

    name: str
    title: str
    draw: Callable[[], bytes] = field(repr=False)

    @cached_property
    def image(self) -> bytes:
        """The PNG."""
        return self.draw()


class Result(NamedTuple):
    """What the runs of one setting say about a claim."""

    setting: str
    verdict: Literal["reached", "not reached", "no data"]
    detail: str
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim and what the runs say about it, setting by setting."""

    claim: str
    results: Sequence[Result]


@dataclass(frozen=True, kw_only=True)
class Details:
    """Blocks that are folded away at first."""

    summary: str
    blocks: Sequence[Block]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A chapter (level 2) or a section of it (level 3)."""

    title: str
    anchor: str
    level: Literal[2, 3]
    blocks: Sequence[Block]


Block = Words | Table | Figure | Verdict | Details
