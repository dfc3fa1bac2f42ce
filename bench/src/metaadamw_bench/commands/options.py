"""Options that several commands share.

Neither this file nor that of a command imports torch before the command runs: help, completion and
mistakes are there at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from metaadamw_bench.ablations import ABLATIONS
from metaadamw_bench.names import ARMS, TASKS, unknown

__all__ = [
    "AblationName",
    "ArmName",
    "DataDir",
    "Device",
    "Epochs",
    "MaxSteps",
    "Precisions",
    "Protocols",
    "Sizes",
    "TaskName",
    "Threads",
    "check_names",
    "key_values",
    "split_names",
]


class Protocols(str, Enum):
    """How a task is split and scored."""

    paper = "paper"
    clean = "clean"


class Sizes(str, Enum):
    """How large a task is."""

    small = "small"
    full = "full"


class Precisions(str, Enum):
    """What forward passes compute in."""

    fp32 = "fp32"
    bf16 = "bf16"


def check_names(names: Iterable[str], allowed: Iterable[str]) -> None:
    """Refuse a name that is not allowed.

    Raises:
        typer.BadParameter: says which names are.
    """
    allowed = list(allowed)
    for name in names:
        if name not in allowed:
            raise typer.BadParameter(unknown(name, allowed))


def _one_of(allowed: Collection[str]) -> Callable[[str | None], str | None]:
    def check(name: str | None) -> str | None:
        check_names([] if name is None else [name], allowed)
        return name

    return check


def _completing(allowed: Collection[str]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [name for name in allowed if name.startswith(incomplete)]

    return complete


def split_names(values: Iterable[str] | None) -> tuple[str, ...] | None:
    """The names in values that may each hold several, separated by commas."""
    if values is None:
        return None
    return tuple(name.strip() for value in values for name in value.split(",") if name.strip())


def key_values(values: Iterable[str] | None) -> dict[str, Any]:
    """``KEY=VALUE`` as a dictionary; values are JSON, or else plain strings."""
    found = {}
    for value in values or ():
        key, equals, text = value.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{value!r} is not KEY=VALUE", param_hint="--set")
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = text
    return found


TaskName = Annotated[
    str,
    typer.Argument(
        metavar="TASK",
        help=f"One of {', '.join(TASKS)}.",
        callback=_one_of(TASKS),
        autocompletion=_completing(TASKS),
        show_default=False,
    ),
]
ArmName = Annotated[
    str,
    typer.Option(
        help="The optimizer; `metaadamw arms` shows them all.",
        callback=_one_of(ARMS),
        autocompletion=_completing(ARMS),
    ),
]
AblationName = Annotated[
    str | None,
    typer.Option(
        help="MetaAdamW with one thing changed, a row of the paper's Table 3; "
        "`metaadamw arms` shows them all.",
        callback=_one_of(ABLATIONS),
        autocompletion=_completing(ABLATIONS),
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Where the data are; by default METAADAMW_DATA, then the cache, then a download.",
        show_default=False,
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(min=1, help="Epochs at most; by default as many as the task says."),
]
MaxSteps = Annotated[
    int | None, typer.Option(min=1, help="Cut the run after so many steps, to try something out.")
]
Threads = Annotated[
    int, typer.Option(min=1, help="CPU threads of a run; another number changes the last bits.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, … or mps.")]
