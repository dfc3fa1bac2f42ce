"""Writes a report as Markdown, pictures beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from metaadamw_bench.report.document import (
    Block,
    Details,
    Figure,
    Result,
    Section,
    Table,
    Text,
    Verdict,
    Words,
)

__all__ = ["FIGURES", "markdown"]

FIGURES = "figures"


def markdown(title: str, sections: Sequence[Section]) -> str:
    """The whole report."""
    parts = [f"# {title}", "\n".join(_contents(sections))]
    for section in sections:
        parts.append(f'<a id="{section.anchor}"></a>\n\n{"#" * section.level} {section.title}')
        for block in section.blocks:
            parts += _block(block)
    return "\n\n".join(parts) + "\n"


def _contents(sections: Sequence[Section]) -> Iterator[str]:
    for section in sections:
        yield f"{'  ' * (section.level - 2)}- [{section.title}](#{section.anchor})"


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Words):
        yield _escape(block.text)
    elif isinstance(block, Verdict):
        yield f"**{_escape(block.claim)}**"
        yield "\n".join(line for result in block.results for line in _result(result))
    elif isinstance(block, Table):
        yield from _table(block)
    elif isinstance(block, Figure):
        yield f"**{_escape(block.title)}**"
        yield f"![{_escape(block.title)}]({FIGURES}/{block.name})"
    elif isinstance(block, Details):
        yield f"<details><summary>{_escape(block.summary)}</summary>"
        for inner in block.blocks:
            yield from _block(inner)
        yield "</details>"


def _result(result: Result) -> Iterator[str]:
    setting = _escape(f"{result.setting}: ") if result.setting else ""
    yield f"- **{result.verdict}**. {setting}{_escape(result.detail)}"
    for line in result.evidence:
        yield f"  - {_escape(line)}"


def _table(table: Table) -> Iterator[str]:
    if table.title:
        yield f"**{_escape(table.title)}**"
    lines = [_line(table.header), _line(["---", *["---:"] * (len(table.header) - 1)])]
    lines += [_line([_cell(cell) for cell in row]) for row in table.rows]
    yield "\n".join(lines)
    if table.note:
        yield _escape(table.note)
    if table.commands:
        yield "\n".join(["```console", *(f"$ {command}" for command in table.commands), "```"])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: str | Text) -> str:
    """Bold for headings; what colour says on the page is a word here."""
    if isinstance(cell, str):
        return _escape(cell)
    text = _escape(cell.text)
    if cell.tone == "heading":
        return f"**{text}**"
    if cell.tone in ("better", "worse") and cell.tone not in text and "failed" not in text:
        return f"{text} ({cell.tone})"
    return text


def _escape(text: str) -> str:
    for character in "\\`*_|<>[]":
        text = text.replace(character, f"\\{character}")
    return text.replace("\n", "<br>")
