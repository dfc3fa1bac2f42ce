"""Text and tables that lose nothing where a terminal is narrow."""

from __future__ import annotations

from collections.abc import Collection

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

__all__ = ["described", "wrapping_table"]

_INDENT = 4
_DIGITS = 6  # a number should not be broken in two


def wrapping_table(*headings: str, title: str, numbers: Collection[str] = ()) -> Table:
    """A table whose cells go on in the next line, where rich by itself cuts long words off.

    Args:
        headings: of its columns; the first one names the rows, and is as wide as these names are.
        title: of the table.
        numbers: which of the columns are numbers.
    """
    table = Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for heading in headings:
        table.add_column(
            heading,
            justify="right" if heading in numbers else "left",
            min_width=_DIGITS if heading in numbers else None,
            no_wrap=heading == headings[0],
            overflow="fold",
        )
    return table


def described(name: str, title: str, description: str) -> RenderableType:
    """A name that can be copied whole, and below it, indented, what it stands for."""
    head = Text.assemble((name, "bold"), f"  {title}" if title else "", overflow="fold")
    below = Padding(Text(description, overflow="fold"), (0, 0, 0, _INDENT))
    return Group(head, below)
