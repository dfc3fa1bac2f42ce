"""``metaadamw pack`` and ``metaadamw unpack``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from metaadamw_bench.commands.app import app


class By(str, Enum):
    """What has a packed file of its own."""

    protocol = "protocol"
    task = "task"


@app.command()
def pack(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUNS...", help="Directories with runs below, or packed files."),
    ],
    out: Annotated[
        Path,
        typer.Option(help="Directory to write to; or a single file for all, named *.tar.xz."),
    ],
    by: Annotated[
        By, typer.Option(help="A file per task and protocol, or per task with all its protocols.")
    ] = By.protocol,
) -> None:
    """Pack run directories into few compressed files, and leave the directories as they are.

    `report`, `watch` and `run --matched-to` read packed runs like directories, and a report of
    either is the same. The same runs give the same bytes. A file that is there is replaced only if
    none of its runs are lost.

    **Examples**

    - `metaadamw pack runs --out results`
    - `metaadamw pack runs results --out results --by task`: add runs to those packed before
    """
    from metaadamw_bench.pack import pack as write

    for path in write(runs, out, by.value):
        typer.echo(path)


@app.command()
def unpack(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Packed files.")],
    out: Annotated[
        Path,
        typer.Option(
            file_okay=False, help="Directory to write to; paths begin as when they were packed."
        ),
    ] = Path(),
) -> None:
    """Write the run directories of packed files again, every file as it was.

    A file that is there with another content is not touched: the command ends with an error.

    **Examples**

    - `metaadamw unpack results/etth1.tar.xz --out unpacked`
    - `metaadamw unpack results/*.tar.xz`: back to where they were packed
    """
    from metaadamw_bench.pack import unpack as write

    for file in files:
        typer.echo(f"{file}: {len(write(file, out))} files")
