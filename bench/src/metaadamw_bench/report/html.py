"""Writes a report as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files

from metaadamw_bench.report.document import (
    Block,
    Details,
    Figure,
    Section,
    Table,
    Text,
    Verdict,
    Words,
)

__all__ = ["html"]


def html(title: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    style = files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{style}</style>",
            "</head>",
            "<body>",
            '<nav aria-label="Contents">',
            *_contents(sections),
            "</nav>",
            "<main>",
            f'<h1 id="top">{escape(title)}</h1>',
            *(line for section in sections for line in _section(section)),
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _contents(sections: Sequence[Section]) -> Iterator[str]:
    yield '<p><a href="#top">Contents</a></p><ul>'
    for section in sections:
        yield (
            f'<li class="level{section.level}">'
            f'<a href="#{section.anchor}">{escape(section.title)}</a></li>'
        )
    yield "</ul>"


def _section(section: Section) -> Iterator[str]:
    yield f'<h{section.level} id="{section.anchor}">{escape(section.title)}</h{section.level}>'
    for block in section.blocks:
        yield from _block(block)


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Words):
        yield f"<p>{escape(block.text)}</p>"
    elif isinstance(block, Verdict):
        yield f'<div class="claim"><p><strong>{escape(block.claim)}</strong></p>'
        for setting, verdict, detail, evidence in block.results:
            yield (
                f'<p><span class="verdict {verdict.replace(" ", "-")}">{verdict}</span> '
                f"{escape(f'{setting}: ' if setting else '')}{escape(detail)}</p>"
            )
            if evidence:
                yield f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in evidence)}</ul>"
        yield "</div>"
    elif isinstance(block, Table):
        yield from _table(block)
    elif isinstance(block, Figure):
        yield from _figure(block)
    elif isinstance(block, Details):
        yield f"<details><summary>{escape(block.summary)}</summary>"
        for inner in block.blocks:
            yield from _block(inner)
        yield "</details>"


def _figure(figure: Figure) -> Iterator[str]:
    # The size from the PNG's header, so that the page does not jump while it loads.
    width = int.from_bytes(figure.image[16:20], "big")
    height = int.from_bytes(figure.image[20:24], "big")
    data = base64.b64encode(figure.image).decode()
    yield (
        f'<figure><img alt="{escape(figure.title)}" width="{width}" height="{height}" '
        f'src="data:image/png;base64,{data}">'
    )
    yield f"<figcaption>{escape(figure.title)}</figcaption></figure>"


def _table(table: Table) -> Iterator[str]:
    yield '<div class="table">'
    if table.title:
        yield f'<p class="title">{escape(table.title)}</p>'
    yield '<div class="scroll" tabindex="0"><table><thead><tr>'
    for index, name in enumerate(table.header):
        yield f"<th{_classes(table, index, 'plain')}>{escape(name)}</th>"
    yield "</tr></thead><tbody>"
    for row in table.rows:
        yield f"<tr>{''.join(_row(table, row))}</tr>"
    yield "</tbody></table></div>"
    if table.note:
        yield f'<p class="note">{escape(table.note)}</p>'
    if table.commands:
        yield f'<pre class="command">{escape(chr(10).join(table.commands))}</pre>'
    yield "</div>"


def _row(table: Table, row: Sequence[str | Text]) -> Iterator[str]:
    first = row[0]
    if isinstance(first, Text) and first.tone == "heading":
        yield (
            f'<th class="heading" colspan="{len(table.header)}" scope="rowgroup">'
            f"<span>{escape(first.text)}</span></th>"
        )
        return
    for index, cell in enumerate(row):
        text, tone = cell if isinstance(cell, Text) else (cell, "plain")
        tag = "td" if index else "th"
        first_line, *others = escape(text).split("\n")
        small = "".join(f"<small>{line}</small>" for line in others)
        yield f"<{tag}{_classes(table, index, tone)}>{first_line}{small}</{tag}>"


def _classes(table: Table, column: int, tone: str) -> str:
    classes = [tone] if tone != "plain" else []
    if column in table.paper_columns:
        classes.append("paper")
    return f' class="{" ".join(classes)}"' if classes else ""
