"""``metaadamw report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metaadamw_bench.commands.app import app
from metaadamw_bench.printable import printable


@app.command()
def report(
    roots: Annotated[
        list[Path],
        typer.Argument(
            metavar="ROOT...", help="Directories with runs below them, or packed files."
        ),
    ],
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Directory to write the report to.")
    ] = Path("report"),
    pictures: Annotated[
        bool, typer.Option(help="Draw the figures, which takes most of the time.")
    ] = True,
) -> None:
    """Write tables, figures and statistics of finished runs: report.html, report.md.

    Everything comes from the runs alone, and the same runs give the same bytes, packed or not.

    **Examples**

    - `metaadamw report runs`
    - `metaadamw report results --out results/report --no-pictures`
    """
    from metaadamw_bench.report import write_report
    from metaadamw_bench.report.steps import ReportProgress

    with ReportProgress() as progress:
        write_report(roots, out, progress.tell, pictures=pictures)
    typer.echo(printable(out / "report.html"))
