"""``metaadamw watch``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from metaadamw.bench.commands.app import app


@app.command()
def watch(
    directory: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run.")],
    once: Annotated[bool, typer.Option("--once", help="Show what is there and end.")] = False,
) -> None:
    """Watch a run from another terminal: loss, metric, meta-updates, α and β of every group.

    Looks once a second and changes nothing; ends with the run, or with Ctrl-C. A run on another
    machine can be watched where its directory is seen.

    **Examples**

    - `metaadamw watch runs/clean-small/digits/metaadamw-online/seed0`
    - `metaadamw watch runs/clean-small/digits/metaadamw-online/seed0 --once`
    """
    from metaadamw.bench.watch import draw, look

    console = Console()
    sight = look(directory)
    if once:
        if sight is None:
            raise ValueError(f"{directory} holds no run")
        console.print(draw(sight))
        return
    with Live(Text(f"waiting for a run in {directory}"), console=console) as live:
        while sight is None or sight.status == "running":
            if sight is not None:
                live.update(draw(sight))
            time.sleep(1.0)
            sight = look(directory)
        live.update(draw(sight))
