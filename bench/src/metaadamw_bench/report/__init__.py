"""The report on a set of runs: one HTML page, the same as Markdown, and all numbers as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from metaadamw_bench.printable import ENCODING_ERRORS
from metaadamw_bench.report.collection import BASELINE, Collection
from metaadamw_bench.report.document import Block, Details, Figure, Words
from metaadamw_bench.report.html import html
from metaadamw_bench.report.markdown import FIGURES, markdown
from metaadamw_bench.report.one_machine import on_one_machine
from metaadamw_bench.report.outline import TITLE, count_steps, outline
from metaadamw_bench.report.picture import with_default_style
from metaadamw_bench.report.runs import read_runs
from metaadamw_bench.report.steps import Steps, Tell, quiet
from metaadamw_bench.report.values import values
from metaadamw_bench.run_directory import named
from metaadamw_bench.stored_runs import shown_roots

__all__ = ["write_report"]


@with_default_style
def write_report(
    roots: Sequence[Path], out: Path, tell: Tell = quiet, *, pictures: bool = True
) -> None:
    """Write ``report.html``, ``report.md``, ``figures/*.png`` and ``statistics.json``.

    The same runs give the same bytes, packed or not.

    Args:
        roots: directories with run directories or packed files in them, at any depth, or packed
            files.
        out: the directory to write to; made if it does not exist.
        tell: is told how far it is; a report on many runs takes minutes.
        pictures: draw the figures; without, their titles alone are there.

    Raises:
        ValueError: a root is neither a directory nor a packed file, a packed file is damaged, or
            there is no run in any.
        OSError: ``out`` cannot be written to.
    """
    runs, left_out = read_runs(roots, tell)
    runs = on_one_machine(runs, BASELINE)
    names = shown_roots(roots)
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
    steps = Steps(tell, count_steps(collections) + 2)
    sections = outline(collections, left_out, steps)
    if not pictures:
        sections = [replace(s, blocks=[*_without_pictures(s.blocks)]) for s in sections]
    drawn = [figure for section in sections for figure in _pictures(section.blocks)]
    steps.begin("statistics")
    content = {
        **values(collections, left_out),
        "figures": sorted(picture.name for picture in drawn),
    }
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    new = {out / FIGURES / picture.name: picture.image for picture in drawn}
    outdated = _pictures_of_earlier_report(out) - new.keys()
    steps.begin("writing")
    texts = {
        "report.md": markdown(TITLE, sections),
        "report.html": html(TITLE, sections),
        "statistics.json": f"{text}\n",
    }
    for name, written in texts.items():
        new[out / name] = written.encode("utf-8", ENCODING_ERRORS)
    (out / FIGURES if drawn else out).mkdir(parents=True, exist_ok=True)
    _write(new)
    for path in outdated:
        path.unlink(missing_ok=True)
    tell("done", steps.done, steps.total)


def _pictures(blocks: Sequence[Block]) -> Iterator[Figure]:
    for block in blocks:
        if isinstance(block, Figure):
            yield block
        elif isinstance(block, Details):
            yield from _pictures(block.blocks)


def _without_pictures(blocks: Sequence[Block]) -> Iterator[Block]:
    for block in blocks:
        if isinstance(block, Details):
            yield replace(block, blocks=[*_without_pictures(block.blocks)])
        elif isinstance(block, Figure):
            yield Words(f"{block.title}: not drawn ({FIGURES}/{block.name})")
        else:
            yield block


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
