"""``metaadamw demo``: AdamW against MetaAdamW on real data, ending in a table and a picture."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from metaadamw import LookAhead, __version__
from metaadamw_bench.arm import Arm
from metaadamw_bench.arms import get_arm
from metaadamw_bench.picture import draw
from metaadamw_bench.summary import Summary, summarise
from metaadamw_bench.tasks import PreparedTask, Task
from metaadamw_bench.today import plain_choice
from metaadamw_bench.train import STEPS, Run, train

__all__ = ["ARMS", "run_demo"]


def _in_a_hurry(task: PreparedTask) -> dict[str, Any]:
    """MetaAdamW's settings for a run that has only a few hundred steps to learn in."""
    settings = get_arm("metaadamw").settings(task)
    return {**settings, "learning": plain_choice(LookAhead(every=10, optimizer="adam"))}


ARMS = (
    get_arm("adamw"),
    replace(
        get_arm("metaadamw"),
        settings=_in_a_hurry,
        description=(
            "the paper's method, but with a meta-update every 10 steps instead of every "
            "100, by Adam instead of SGD: a run has only a few hundred steps to learn in"
        ),
    ),
    replace(
        get_arm("metaadamw-factors"),
        decay_per_step=None,
        description=(
            "learning='hypergradient', for runs as short as this: a factor for each group, which "
            "learns inside step() from the training gradients; AdamW's weight decay"
        ),
    ),
)


def run_demo(
    tasks: Sequence[Task], seeds: Sequence[int], steps: int | None, out: Path, console: Console
) -> None:
    """Train every arm on every task with every seed; print the table, write picture and numbers.

    Args:
        tasks: the tasks.
        seeds: the seeds; within a seed all arms start alike.
        steps: optimizer steps of a run, ``STEPS`` by default.
        out: directory for ``demo.png`` and ``demo.json``.
        console: where to print.
    """
    out.mkdir(parents=True, exist_ok=True)
    arms = list(ARMS)
    console.print(_introduction(tasks, arms))
    prepared = [task.prepare() for task in tasks]
    runs = _train_all(prepared, arms, seeds, steps, console)
    summaries = [summarise(runs, task.name, arm.name) for task in tasks for arm in arms]

    console.print(_table(tasks, summaries))
    console.print(
        "Validation after the last step. The difference pairs runs of the same seed: same weights, "
        "same batches, same dropout. step() is the time in optimizer.step(), AdamW's being 1. "
        f"{len(seeds)} seed{'s' * (len(seeds) != 1)} and small models show how it works; "
        "they do not prove that one optimizer is better.",
        style="italic",
    )
    for run in runs:
        for reason in run.skipped:
            console.print(
                f"{run.task}, {run.arm}, seed {run.seed}: meta-update skipped, {reason}",
                style="red",
            )
    numbers, picture = out / "demo.json", out / "demo.png"
    numbers.write_text(
        json.dumps(_record(tasks, prepared, arms, summaries, runs)), encoding="utf-8"
    )
    draw(tasks, arms, runs, picture)
    console.print(
        f"\nNumbers: {numbers}\nPicture: {picture}", soft_wrap=True, highlight=False, markup=False
    )


def _introduction(tasks: Sequence[Task], arms: Sequence[Arm]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    for task in tasks:
        table.add_row(task.name, f"{task.title}. {task.data}.")
    for arm in arms:
        table.add_row(arm.name, f"{arm.description}.")
    return table


def _train_all(
    tasks: Sequence[PreparedTask],
    arms: Sequence[Arm],
    seeds: Sequence[int],
    steps: int | None,
    console: Console,
) -> list[Run]:
    plan = [(task, seed, arm) for task in tasks for seed in seeds for arm in arms]
    runs = []
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        total = len(plan) * (steps or STEPS)
        overall = progress.add_task("all runs", total=total, loss="")
        current = progress.add_task("", total=None, loss="")

        def on_step(loss: float) -> None:
            progress.advance(overall)
            progress.update(current, advance=1, loss=f"loss {loss:.3f}")

        for task, seed, arm in plan:
            progress.reset(
                current,
                description=f"{task.name}, seed {seed}, {arm.title}",
                total=steps or STEPS,
            )
            runs.append(train(task, arm, seed, steps=steps, on_step=on_step))
        progress.remove_task(current)
    return runs


def _table(tasks: Sequence[Task], summaries: Sequence[Summary]) -> Table:
    seeds = len(summaries[0].seeds)
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "1 seed"
    table = Table(title=f"AdamW and MetaAdamW, {spread}")
    table.add_column("optimizer", overflow="fold")
    for heading in ("validation", "minus AdamW", "seconds", "step()"):
        table.add_column(heading, justify="right", overflow="fold")
    for task in tasks:
        better = "higher" if task.metric.direction == "maximize" else "lower"
        table.add_section()
        table.add_row(f"[bold]{task.name}[/bold]: {task.metric.name} ({better} is better)")
        for summary in summaries:
            if summary.task == task.name:
                table.add_row(
                    f"  {get_arm(summary.arm).title}",
                    f"{summary.metric:.3f}",
                    _difference(task, summary),
                    f"{summary.seconds:.1f}",
                    f"{summary.step_overhead:.1f}×",
                )
    return table


def _difference(task: Task, summary: Summary) -> str:
    if summary.difference is None:
        return ""
    gain = summary.difference.mean * (1 if task.metric.direction == "maximize" else -1)
    colour = "green" if gain > 0 else "red" if gain < 0 else "default"
    return f"[{colour}]{summary.difference:+.3f}[/{colour}]"


def _record(
    tasks: Sequence[Task],
    prepared: Sequence[PreparedTask],
    arms: Sequence[Arm],
    summaries: Sequence[Summary],
    runs: Sequence[Run],
) -> dict[str, object]:
    """Every number, and what is needed to understand it."""
    return {
        "environment": {
            "metaadamw": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "platform": platform.platform(),
            "threads": torch.get_num_threads(),
        },
        "tasks": {
            task.name: {
                "title": task.title,
                "data": task.data,
                "metric": task.metric.name,
                "direction": task.metric.direction,
                "batch_size": ready.batch_size,
                "lr": ready.lr,
                "weight_decay": ready.weight_decay,
            }
            for task, ready in zip(tasks, prepared, strict=True)
        },
        "arms": {arm.name: arm.description for arm in arms},
        "summaries": [asdict(summary) for summary in summaries],
        "runs": [asdict(run) for run in runs],
    }
