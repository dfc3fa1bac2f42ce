"""The report on a set of runs: one HTML page, the same as Markdown, and all numbers as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from metaadamw.bench.report.collection import BASELINE, Collection
from metaadamw.bench.report.document import Block, Details, Figure
from metaadamw.bench.report.html import html
from metaadamw.bench.report.markdown import FIGURES, markdown
from metaadamw.bench.report.one_machine import on_one_machine
from metaadamw.bench.report.outline import TITLE, outline
from metaadamw.bench.report.picture import with_default_style
from metaadamw.bench.report.runs import read_runs, shown
from metaadamw.bench.report.values import values
from metaadamw.bench.run_directory import named

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
    runs = on_one_machine(runs, BASELINE)
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
    content = {
        **values(collections, left_out),
        "figures": sorted(picture.name for picture in pictures),
    }
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    new = {out / FIGURES / picture.name: picture.image for picture in pictures}
    outdated = _pictures_of_earlier_report(out) - new.keys()
    (out / FIGURES).mkdir(parents=True, exist_ok=True)
    _write(
        {
            **new,
            out / "report.md": markdown(TITLE, sections).encode(),
            out / "report.html": html(TITLE, sections).encode(),
            out / "statistics.json": f"{text}\n".encode(),
        }
    )
    for path in outdated:
        path.unlink(missing_ok=True)


def _pictures(blocks: Sequence[Block]) -> Iterator[Figure]:
    for block in blocks:
        if isinstance(block, Figure):
            yield block
        elif isinstance(block, Details):
            yield from _pictures(block.blocks)


def _pictures_of_earlier_report(out: Path) -> set[Path]:
    """Only what an earlier report says it has written itself."""
    try:
        earlier = json.loads((out / "statistics.json").read_text(encoding="utf-8"))["figures"]
        return {out / FIGURES / Path(name).name for name in earlier}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _write(contents: Mapping[Path, bytes]) -> None:
    """Replace files once all are on the disk: a full one leaves the earlier report as it was."""
    temporaries = {path: path.with_name(f".{path.name}.tmp") for path in contents}
    try:
        for path, temporary in temporaries.items():
            try:
                temporary.write_bytes(contents[path])
            except OSError as error:
                raise named(error, path) from error
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    except BaseException:
        for temporary in temporaries.values():
            with suppress(OSError):
                temporary.unlink()
        raise
