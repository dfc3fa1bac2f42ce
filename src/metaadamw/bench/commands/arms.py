"""``metaadamw arms``."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from metaadamw.bench.ablations import ABLATIONS
from metaadamw.bench.arms import ARMS
from metaadamw.bench.commands.app import app


@app.command()
def arms(
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object.")] = False,
) -> None:
    """Show the optimizers that can be compared, and the ablations of MetaAdamW.

    **Examples**

    - `metaadamw arms`
    - `metaadamw run digits --arm metaadamw-paper --ablation gating-on`
    """
    if as_json:
        content = {
            "arms": [
                {"name": arm.name, "title": arm.title, "description": arm.description}
                for arm in ARMS.values()
            ],
            "ablations": [
                {"name": a.name, "section": a.section, "configuration": a.configuration}
                for a in ABLATIONS.values()
            ],
        }
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
        return
    console = Console()
    table = Table()
    # A name that is cut short cannot be typed in.
    table.add_column("arm", min_width=max(map(len, ARMS)))
    table.add_column("title")
    table.add_column("what runs")
    for arm in ARMS.values():
        table.add_row(arm.name, arm.title, arm.description)
    console.print(table)
    rows = Table("ablation", "of the paper's Table 3", "row")
    for ablation in ABLATIONS.values():
        rows.add_row(ablation.name, ablation.section, ablation.configuration)
    console.print(rows, markup=False)
