"""``metaadamw sweep``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from metaadamw_bench.ablations import ABLATIONS
from metaadamw_bench.commands.app import app
from metaadamw_bench.commands.options import (
    DataDir,
    Epochs,
    MaxSteps,
    Precisions,
    Protocols,
    Sizes,
    check_names,
    split_names,
)
from metaadamw_bench.names import ARMS, TASKS
from metaadamw_bench.printable import shell_command


@app.command()
def sweep(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE.toml]",
            exists=True,
            dir_okay=False,
            help="Holds the same as the flags, in their words; flags go first.",
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option(help="Tasks, separated by commas; or all.")
    ] = None,
    arms: Annotated[
        list[str] | None, typer.Option(help="Arms, separated by commas; or all.")
    ] = None,
    seeds: Annotated[
        list[str] | None, typer.Option(help="Seeds, separated by commas; or a range, 0-4.")
    ] = None,
    ablations: Annotated[
        list[str] | None,
        typer.Option(help="Ablations, separated by commas; or all. They add to the arms."),
    ] = None,
    ablation_arm: Annotated[
        str | None, typer.Option(help="The arm they change. [default: metaadamw-paper]")
    ] = None,
    lr_factors: Annotated[
        list[str] | None,
        typer.Option(
            help="Further learning rates of the arms, in units of the task's, separated by commas."
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            file_okay=False,
            help="Runs go to `OUT/<protocol>-<size>/<task>/<arm>[+ablation]/seed<k>`.",
        ),
    ] = Path("runs"),
    protocol: Annotated[Protocols | None, typer.Option(help="[default: clean]")] = None,
    size: Annotated[Sizes | None, typer.Option(help="[default: small]")] = None,
    epochs: Epochs = None,
    max_steps: MaxSteps = None,
    device: Annotated[str | None, typer.Option(help="[default: cpu]")] = None,
    precision: Annotated[Precisions | None, typer.Option(help="[default: fp32]")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of each run. [default: 1]")] = None,
    data_dir: DataDir = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Runs at a time.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Run on the Ray cluster at ADDRESS; local starts one on this machine.",
        ),
    ] = None,
    keep_checkpoints: Annotated[
        bool, typer.Option("--keep-checkpoints", help="Keep those of finished runs.")
    ] = False,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart",
            help="Start those that have not finished over, as a checkpoint of another version "
            "asks for; without it they go on where they were.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, and do nothing.")
    ] = False,
) -> None:
    """Run tasks × arms × seeds, and ablations; what has finished is never repeated.

    Every run is a process with a directory of its own. One that fails does not stop the others;
    failures are listed at the end, with exit code 1. The same command goes on after an
    interruption. Tuned and matched arms bring the runs that they read from.

    **Examples**

    - `metaadamw sweep sweeps/small.toml --jobs 2`
    - `metaadamw sweep --tasks digits,pydoc --arms adamw,metaadamw --seeds 0-4 --out runs`
    - `metaadamw sweep --tasks wikitext2 --arms metaadamw-paper --ablations all --seeds 0-2`
    - `metaadamw sweep sweeps/paper-adamw.toml --ray auto`
    """
    from metaadamw_bench.launch import launcher, run_all
    from metaadamw_bench.sweep import Sweep, plan, read_sweep

    flags = {
        "tasks": _names(tasks, TASKS),
        "arms": _names(arms, ARMS),
        "seeds": _seeds(seeds),
        "ablations": _names(ablations, ABLATIONS),
        "ablation_arm": ablation_arm,
        "lr_factors": _factors(lr_factors),
        "protocol": protocol and protocol.value,
        "size": size and size.value,
        "epochs": epochs,
        "max_steps": max_steps,
        "device": device,
        "precision": precision and precision.value,
        "threads": threads,
    }
    given: dict[str, Any] = {} if file is None else read_sweep(file)
    given.update({name: value for name, value in flags.items() if value is not None})
    for needed in ("tasks", "arms"):
        if not given.get(needed):
            raise typer.BadParameter(f"no {needed}: name them with --{needed} or in a file")
    _check(given)
    planned = plan(Sweep(**given), out, data_dir)
    todo = {place: job for place, job in planned.jobs.items() if not job.finished}
    console = Console(stderr=True)
    for reason in planned.skipped:
        console.print(f"left out: {reason}", soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"{len(planned.jobs)} runs in {out}: {len(planned.jobs) - len(todo)} already done, "
        f"{len(todo)} to do",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    commands = {
        place: job.command(data_dir, keep_checkpoint=keep_checkpoints, restart=restart)
        for place, job in todo.items()
    }
    failures = dict(planned.failed)
    if dry_run:
        for words in commands.values():
            typer.echo(shell_command(["metaadamw", *words]))
        _report(failures)
        return
    with (
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        ) as progress,
        launcher(jobs, ray) as start,
    ):
        row = progress.add_task("runs", total=len(todo))
        for job, error in run_all(planned.jobs, commands, start):
            progress.advance(row)
            if error is not None:
                failures[f"{job.title} ({job.place})"] = error
            said = "done" if error is None else f"failed: {error}"
            progress.console.print(
                f"{job.title}: {said}", soft_wrap=True, highlight=False, markup=False
            )
    _report(failures)


def _report(failures: dict[str, str]) -> None:
    for title, error in failures.items():
        typer.echo(f"failed: {title}: {error}", err=True)
    if failures:
        raise typer.Exit(1)


def _names(values: list[str] | None, known: Iterable[str]) -> tuple[str, ...] | None:
    names = split_names(values)
    return tuple(known) if names == ("all",) else names


def _seeds(values: list[str] | None) -> tuple[int, ...] | None:
    names = split_names(values)
    if names is None:
        return None
    found: list[int] = []
    for name in names:
        first, dash, last = name.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise typer.BadParameter(f"{name!r} is neither a seed nor a range of seeds")
        seeds = range(int(first), int(last if dash else first) + 1)
        if not seeds:
            raise typer.BadParameter(f"{name!r} counts down; a range goes up, like 0-4")
        found += seeds
    return tuple(found)


def _factors(values: list[str] | None) -> tuple[float, ...] | None:
    names = split_names(values)
    if names is None:
        return None
    try:
        return tuple(float(name) for name in names)
    except ValueError:
        raise typer.BadParameter(f"{','.join(names)!r} are not numbers") from None


def _check(given: dict[str, Any]) -> None:
    """Refuse unknown names wherever they come from, and sort out doubles."""
    names: dict[str, Iterable[str]] = {"tasks": TASKS, "arms": ARMS, "ablations": ABLATIONS}
    for name, known in names.items():
        values = given.get(name, ())
        given[name] = tuple(known) if values == ("all",) else tuple(dict.fromkeys(values))
        check_names(given[name], known)
    given["seeds"] = tuple(dict.fromkeys(given.get("seeds", (0,))))
    if not given["seeds"]:
        raise typer.BadParameter("no seeds: name at least one")
    given["lr_factors"] = tuple(dict.fromkeys(given.get("lr_factors", ())))
    for factor in given["lr_factors"]:
        if not 0 < factor < math.inf or factor == 1:
            raise typer.BadParameter(f"lr_factors must be above 0 and not 1, got {factor:g}")
    for name in ("epochs", "max_steps", "threads"):
        if given.get(name, 1) < 1:
            raise typer.BadParameter(f"{name} must be at least 1, got {given[name]}")
    if min(given["seeds"]) < 0:
        raise typer.BadParameter(f"seeds must be at least 0, got {min(given['seeds'])}")
    check_names([given.get("protocol", "clean")], [p.value for p in Protocols])
    check_names([given.get("size", "small")], [s.value for s in Sizes])
    check_names([given.get("precision", "fp32")], [p.value for p in Precisions])
    if "ablation_arm" in given:
        from metaadamw_bench.arms import ARMS as ALL  # brings torch

        check_names([given["ablation_arm"]], [name for name, arm in ALL.items() if arm.modulated])
