"""``metaadamw tasks``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from metaadamw_bench.commands.app import app
from metaadamw_bench.commands.options import DataDir, Protocols, Sizes
from metaadamw_bench.showing import described

if TYPE_CHECKING:
    from metaadamw_bench.tasks import Task


@app.command()
def tasks(
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON list with everything that needs the data.")
    ] = False,
    protocol: Annotated[
        Protocols | None, typer.Option(help="Only this protocol (with --json).")
    ] = None,
    size: Annotated[Sizes | None, typer.Option(help="Only this size (with --json).")] = None,
    data_dir: DataDir = None,
) -> None:
    """Show the tasks: data, model, metric and what the paper reports.

    With `--json` the data are read, and each task, protocol and size becomes an object with the
    batches of an epoch, the parameters of the model, learning rate, epochs and notes. A task whose
    data are missing has an "error" instead.

    **Examples**

    - `metaadamw tasks`
    - `metaadamw tasks --json --protocol paper --size full`
    """
    from metaadamw_bench.tasks import get_task, task_names

    specifications = [get_task(name) for name in task_names()]
    if as_json:
        wanted = (
            [protocol.value] if protocol else [p.value for p in Protocols],
            [size.value] if size else [s.value for s in Sizes],
        )
        entries = [e for task in specifications for e in _entries(task, *wanted, data_dir)]
        typer.echo(json.dumps(entries, indent=2, ensure_ascii=False))
        return
    console = Console()
    for task in specifications:
        better = "higher" if task.metric.direction == "maximize" else "lower"
        lines = [task.data, f"{task.metric.name}: {better} is better"]
        if task.paper is not None:
            lines.append(f"paper: AdamW {task.paper.adamw:g}, MetaAdamW {task.paper.metaadamw:g}")
        console.print(described(task.name, task.title, "\n".join(lines)))


def _entries(
    task: Task, protocols: list[str], sizes: list[str], data_dir: Path | None
) -> Iterator[dict[str, Any]]:
    # Imported here because it brings every data set's reader.
    from metaadamw_bench.data import DataError

    for protocol in (p for p in task.protocols if p in protocols):
        for size in (s for s in task.sizes if s in sizes):
            entry = {"name": task.name, "protocol": protocol, "size": size, "title": task.title}
            try:
                ready = task.prepare(protocol=protocol, size=size, data_dir=data_dir)
            except DataError as error:
                yield {**entry, "steps_per_epoch": None, "parameters": None, "error": str(error)}
                continue
            test = ready.splits.test
            yield {
                **entry,
                "steps_per_epoch": ready.steps_per_epoch,
                "parameters": ready.parameters,
                "batch_size": ready.batch_size,
                "max_epochs": dict(ready.max_epochs),
                "patience": ready.patience,
                "min_delta": ready.min_delta,
                "lr": ready.lr,
                "weight_decay": ready.weight_decay,
                "metric": ready.metric.name,
                "direction": ready.metric.direction,
                "examples": {
                    "train": len(ready.splits.train),
                    "meta_validation": len(ready.splits.meta_validation),
                    "validation": len(ready.splits.validation),
                    "test": None if test is None else len(test),
                },
                "notes": list(ready.notes),
            }
