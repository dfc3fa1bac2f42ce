"""``metaadamw data``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from metaadamw_bench.commands.app import app
from metaadamw_bench.commands.options import DataDir, check_names
from metaadamw_bench.data import DataError, fetch, find, get_data_set
from metaadamw_bench.data.files import check
from metaadamw_bench.names import DATA_SETS

data_app = typer.Typer(rich_markup_mode="markdown", no_args_is_help=True)
app.add_typer(data_app, name="data", help="Find and download the data sets of the paper's tasks.")


def _check_data_sets(names: list[str] | None) -> list[str] | None:
    check_names(names or [], DATA_SETS)
    return names


@data_app.command("fetch")
def fetch_data(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help=f"Of {', '.join(DATA_SETS)}; all by default.",
            callback=_check_data_sets,
        ),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Download data sets from their public sources, checked against their checksums.

    What is there already is only checked; an interrupted download goes on where it was.

    **Examples**

    - `metaadamw data fetch`
    - `metaadamw data fetch cifar10 --data-dir data`
    """
    failed = []
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as progress:
        bars = {}

        def show(name: str, have: int, total: int | None) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name)
            progress.update(bars[name], completed=have, total=total)

        for name in dict.fromkeys(names or DATA_SETS):
            data_set = get_data_set(name)
            try:
                found = find(data_set, data_dir, to_complete=True)
                if found is None:
                    paths = fetch(data_set, data_dir, show)
                else:
                    paths = found.paths
                    for file, path in zip(found.layout.files, paths, strict=True):
                        check(file, path)
            except DataError as error:
                failed.append(str(error))
            else:
                progress.console.print(
                    f"{name}: {paths[0].parent}", soft_wrap=True, highlight=False, markup=False
                )
    if failed:
        raise DataError("; ".join(failed))
