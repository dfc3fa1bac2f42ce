"""``metaadamw arms``."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from metaadamw_bench.commands.app import app
from metaadamw_bench.showing import described


@app.command()
def arms(
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object.")] = False,
) -> None:
    """Show the optimizers that can be compared, and the ablations of MetaAdamW.

    **Examples**

    - `metaadamw arms`
    - `metaadamw run digits --arm metaadamw-paper --ablation gating-on`
    """
    from metaadamw_bench.ablations import ABLATIONS
    from metaadamw_bench.arms import ARMS

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
    console.print(Text("Arms: the optimizers that are compared (--arm)\n", style="bold"))
    for arm in ARMS.values():
        console.print(described(arm.name, arm.title, arm.description))
    console.print(
        Text("\nAblations: rows of the paper's Table 3, and ours (--ablation)\n", style="bold")
    )
    for ablation in ABLATIONS.values():
        row = f"{ablation.section}: {ablation.configuration}"
        console.print(described(ablation.name, "", row))
