"""Markdown tables and the numbers in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def table(header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; the first column is text, the others are flush right."""
    titles = [str(title) for title in header]
    rule = ["---", *["--:"] * (len(titles) - 1)]
    lines = [titles, rule, *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(value: float) -> str:
    """Three significant digits, at most two behind the point."""
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f}"


def milliseconds(timing: dict[str, Any]) -> str:
    """Median and quartiles."""
    median, q1, q3 = (number(1000 * timing[key]) for key in ("median", "q1", "q3"))
    return f"{median} ({q1}–{q3})"
