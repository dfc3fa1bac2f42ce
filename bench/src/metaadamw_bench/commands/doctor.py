"""``metaadamw doctor``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from metaadamw_bench.commands.app import app
from metaadamw_bench.commands.options import DataDir, Device, Sizes, Threads, check_names
from metaadamw_bench.names import TASKS


def _check_tasks(names: list[str] | None) -> list[str] | None:
    check_names(names or [], TASKS)
    return names


@app.command()
def doctor(
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="Measure what a run of this task costs; repeatable. [default: all whose data are "
            "here]",
            callback=_check_tasks,
        ),
    ] = None,
    size: Annotated[Sizes, typer.Option(help="Size of the tasks that are measured.")] = Sizes.small,
    cost: Annotated[bool, typer.Option(help="Measure what runs cost.")] = True,
    device: Device = "cpu",
    threads: Threads = 1,
    data_dir: DataDir = None,
) -> None:
    """Say what is installed, which devices there are, which data are here, what a run will cost.

    The cost comes from a few steps of AdamW and MetaAdamW and from part of an evaluation, timed
    here and now; early stopping can only make a run shorter.

    **Examples**

    - `metaadamw doctor`
    - `metaadamw doctor --no-cost`
    - `metaadamw doctor --task cifar10 --size full --device cuda`
    """
    from metaadamw_bench import doctor as measured

    console = Console()
    console.print(measured.installed())
    console.print(measured.devices())
    console.print(measured.data(data_dir))
    if cost:
        names = task or measured.tasks_with_data(data_dir)
        console.print(
            measured.costs(names, size.value, device=device, threads=threads, data_dir=data_dir)
        )
