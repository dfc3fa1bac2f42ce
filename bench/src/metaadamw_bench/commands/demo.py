"""``metaadamw demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from metaadamw_bench.commands.app import app
from metaadamw_bench.commands.options import check_names
from metaadamw_bench.names import DEMO_TASKS


def _check_tasks(names: list[str] | None) -> list[str] | None:
    check_names(names or [], DEMO_TASKS)
    return names


@app.command()
def demo(
    seeds: Annotated[int, typer.Option(min=1, help="Seeds per optimizer: 0, 1, …")] = 3,
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Directory for demo.png and demo.json.")
    ] = Path("demo-output"),
    task: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Run only this task ({', '.join(DEMO_TASKS)}); repeatable.",
            callback=_check_tasks,
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps per run, instead of 300.")] = None,
    threads: Annotated[
        int, typer.Option(min=1, help="CPU threads; models this small gain little.")
    ] = 1,
) -> None:
    """Train with AdamW and MetaAdamW on two real data sets and compare: a minute or two.

    The data travel inside installed packages: handwritten digits (scikit-learn) and the language
    reference (Python itself). Within a seed all optimizers start from the same weights and see
    the same batches. Ends with a table, a picture of the losses and of what MetaAdamW did to each
    parameter group (α times the learning rate, β times the weight decay), and all numbers as JSON.

    **Examples**

    - `metaadamw demo`
    - `metaadamw demo --task digits --seeds 10`
    """
    import torch

    from metaadamw_bench.demo import run_demo
    from metaadamw_bench.tasks import get_task

    torch.set_num_threads(threads)
    tasks = [get_task(name) for name in dict.fromkeys(task or DEMO_TASKS)]
    run_demo(tasks, range(seeds), steps, out, Console())
