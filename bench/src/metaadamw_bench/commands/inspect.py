"""``metaadamw inspect``."""

from __future__ import annotations

import importlib
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metaadamw_bench.commands.app import app
from metaadamw_bench.commands.options import DataDir, Protocols, Sizes
from metaadamw_bench.names import TASKS, suggestion

if TYPE_CHECKING:
    from torch import nn


class Kinds(str, Enum):
    """How finely layers are told apart."""

    extended = "extended"
    paper = "paper"


@app.command()
def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="TASK|MODULE:FACTORY",
            help="A task, or an importable module and in it a function without arguments that "
            "returns a torch.nn.Module, or such a module itself.",
        ),
    ],
    kinds: Annotated[
        Kinds, typer.Option(help="extended, or the five layer types of the paper alone.")
    ] = Kinds.extended,
    protocol: Annotated[Protocols, typer.Option(help="Of a task.")] = Protocols.clean,
    size: Annotated[Sizes, typer.Option(help="Of a task.")] = Sizes.small,
    data_dir: DataDir = None,
) -> None:
    """Show how a model's parameters are grouped: MetaAdamW gives each group an α and a β.

    Modules are looked up from the current directory first.

    **Examples**

    - `metaadamw inspect torchvision.models:resnet18`
    - `metaadamw inspect my_project.model:build --kinds paper`
    - `metaadamw inspect wikitext2 --size full`
    """
    if model not in TASKS:
        _check_place(model)
    from metaadamw import fine_grained_groups, group_table
    from metaadamw_bench.tasks import get_task

    if model in TASKS:
        task = get_task(model).prepare(protocol=protocol.value, size=size.value, data_dir=data_dir)
        found = task.build_model()
    else:
        found = _load_model(model)
    typer.echo(group_table(fine_grained_groups(found, kinds=kinds.value)))


def _check_place(place: str) -> None:
    module_name, _, attribute = place.partition(":")
    if not module_name or not attribute:
        raise typer.BadParameter(
            f"{place!r} is not of this form, and no task{suggestion(place, TASKS)}",
            param_hint="MODULE:FACTORY",
        )


def _load_model(place: str) -> nn.Module:
    from torch import nn

    module_name, _, attribute = place.partition(":")
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
