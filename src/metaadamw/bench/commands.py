"""The commands of ``metaadamw``."""

from __future__ import annotations

import importlib
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import nn

from metaadamw import __version__, fine_grained_groups, group_table
from metaadamw.bench.tasks import demo_task_names, get_task

app = typer.Typer(
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Kinds(str, Enum):
    """How finely layers are told apart."""

    extended = "extended"
    paper = "paper"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"metaadamw {__version__}")
        raise typer.Exit


def _check_task_names(names: list[str] | None) -> list[str] | None:
    for name in names or ():
        if name not in demo_task_names():
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(demo_task_names())}")
    return names


@app.callback()
def metaadamw(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; works anywhere.")
    ] = False,
) -> None:
    """AdamW whose learning rate and weight decay learn, per parameter group, while you train.

    Start with `metaadamw demo`, then look at the groups of your own model with
    `metaadamw inspect`.
    """


@app.command()
def demo(
    seeds: Annotated[int, typer.Option(min=1, help="Seeds per optimizer: 0, 1, …")] = 3,
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Directory for demo.png and demo.json.")
    ] = Path("demo-output"),
    task: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Run only this task ({', '.join(demo_task_names())}); repeatable.",
            callback=_check_task_names,
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps per run, 300 by default.")] = None,
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
    # Imported here because they bring matplotlib and scikit-learn, which --help does not need.
    from metaadamw.bench.demo import run_demo

    torch.set_num_threads(threads)
    tasks = [get_task(name) for name in dict.fromkeys(task or demo_task_names())]
    run_demo(tasks, range(seeds), steps, out, Console())


@app.command()
def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FACTORY",
            help="An importable module and in it a function without arguments that returns a "
            "torch.nn.Module, or such a module itself.",
        ),
    ],
    kinds: Annotated[
        Kinds, typer.Option(help="extended, or the five layer types of the paper alone.")
    ] = Kinds.extended,
) -> None:
    """Show how a model's parameters are grouped: MetaAdamW gives each group an α and a β.

    Modules are looked up from the current directory first.

    **Examples**

    - `metaadamw inspect torchvision.models:resnet18`
    - `metaadamw inspect my_project.model:build --kinds paper`
    """
    typer.echo(group_table(fine_grained_groups(_load_model(model), kinds=kinds.value)))


def _load_model(place: str) -> nn.Module:
    module_name, _, attribute = place.partition(":")
    if not module_name or not attribute:
        raise typer.BadParameter(f"{place!r} is not of this form", param_hint="MODULE:FACTORY")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
        for name in attribute.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import {place!r}: {error}") from error
    if isinstance(found, nn.Module):
        return found
    try:
        model = found()
    except Exception as error:
        raise ValueError(
            f"{place!r} cannot be called without arguments: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise TypeError(f"{place!r} returned a {type(model).__name__}, not a torch.nn.Module")
    return model
