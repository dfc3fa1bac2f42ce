"""``metaadamw report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metaadamw.bench.commands.app import app


@app.command()
def report(
    roots: Annotated[
        list[Path],
        typer.Argument(metavar="ROOT...", help="Directories with run directories below them."),
    ],
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Directory to write the report to.")
    ] = Path("report"),
) -> None:
    """Write tables, figures and statistics of finished runs: report.html, report.md.

    Everything comes from the run directories alone, and the same runs give the same bytes.

    **Examples**

    - `metaadamw report runs`
    - `metaadamw report results/small results/gpu --out results/report`
    """
    from metaadamw.bench.report import write_report

    write_report(roots, out)
    typer.echo(out / "report.html")
