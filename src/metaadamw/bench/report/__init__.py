"""The report on a set of runs: one HTML page, the same as Markdown, and all numbers as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from metaadamw.bench.report.collection import Collection
from metaadamw.bench.report.document import Block, Details, Figure
from metaadamw.bench.report.html import html
from metaadamw.bench.report.markdown import FIGURES, markdown
from metaadamw.bench.report.outline import TITLE, outline
from metaadamw.bench.report.picture import with_default_style
from metaadamw.bench.report.runs import read_runs, shown
from metaadamw.bench.report.values import values

__all__ = ["write_report"]


@with_default_style
def write_report(roots: Sequence[Path], out: Path) -> None:
    """Write ``report.html``, ``report.md``, ``figures/*.png`` and ``statistics.json``.

    The same run directories give the same bytes.

    Args:
        roots: directories with run directories in them, at any depth.
        out: the directory to write to; made if it does not exist.

    Raises:
        ValueError: a root is not a directory, or there is no run directory in any.
        OSError: ``out`` cannot be written to.
    """
    runs, left_out = read_runs(roots)
    names = [shown(root) for root in roots]
    cells = [run.cell for run in runs] + [entry.cell for entry in left_out if entry.cell]
    settings = dict.fromkeys(cell.setting for cell in cells)
    collections = [
        Collection(
            setting,
            [run for run in runs if run.cell.setting == setting],
            [entry for entry in left_out if entry.cell and entry.cell.setting == setting],
            names,
        )
        for setting in settings
    ]
    sections = outline(collections, left_out)
    pictures = [figure for section in sections for figure in _pictures(section.blocks)]
    (out / FIGURES).mkdir(parents=True, exist_ok=True)
    _remove_pictures_of_earlier_report(out)
    for picture in pictures:
        _write(out / FIGURES / picture.name, picture.image)
    _write(out / "report.md", markdown(TITLE, sections).encode())
    _write(out / "report.html", html(TITLE, sections).encode())
    content = {
        **values(collections, left_out),
        "figures": sorted(picture.name for picture in pictures),
    }
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    _write(out / "statistics.json", f"{text}\n".encode())


def _pictures(blocks: Sequence[Block]) -> Iterator[Figure]:
    for block in blocks:
        if isinstance(block, Figure):
            yield block
        elif isinstance(block, Details):
            yield from _pictures(block.blocks)


def _remove_pictures_of_earlier_report(out: Path) -> None:
    """Only what an earlier report says it has written itself."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        earlier = json.loads((out / "statistics.json").read_text(encoding="utf-8"))["figures"]
        for name in earlier:
            (out / FIGURES / Path(name).name).unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    """Replace a file in one go: a full disk leaves the earlier report in place."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
