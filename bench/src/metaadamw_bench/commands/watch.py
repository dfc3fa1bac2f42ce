"""``metaadamw watch``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from metaadamw_bench.commands.app import app


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
    - `metaadamw watch packed.tar.xz/runs/clean-small/digits/adamw/seed0`: a packed run
    """
    console = Console()
    status, picture = _look(directory)
    if once:
        if picture is None:
            raise ValueError(f"{directory} holds no run")
        console.print(picture)
        return
    with Live(Text(f"waiting for a run in {directory}"), console=console) as live:
        while picture is None or status == "running":
            if picture is not None:
                live.update(picture)
            time.sleep(1.0)
            status, picture = _look(directory)
        live.update(picture)


def _look(directory: Path) -> tuple[str, RenderableType | None]:
    """Status and picture of a run; no picture before it has begun."""
    from metaadamw_bench.stored_runs import open_run
    from metaadamw_bench.watch import draw, look

    open_run(directory)  # a packed file without this run is not damaged, and says so itself
    try:
        sight = look(directory)
        return ("", None) if sight is None else (sight.status, draw(sight))
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{directory} holds damaged or other files ({type(error).__name__}: {error})"
        ) from error
