"""The app that every command adds itself to, and what it says before any of them."""

from __future__ import annotations

from typing import Annotated

import typer

from metaadamw_bench import __version__

__all__ = ["app"]

app = typer.Typer(
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"metaadamw {__version__}")
        raise typer.Exit


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

    **Start here**

    - `metaadamw demo`: two small tasks, a table and a picture, a minute or two
    - `metaadamw inspect my_project.model:build`: the groups of your own model
    - `metaadamw doctor`: what is installed, which data are here, what a run will cost

    **Comparisons**

    - `metaadamw tasks`, `metaadamw arms`: what there is to run
    - `metaadamw run etth1 --arm metaadamw --seed 0`: one run; stopped at any moment, the same
      command goes on where it was
    - `metaadamw watch runs/…`: a run while it goes on, from another terminal
    - `metaadamw sweep sweeps/small.toml --jobs 2`: many runs, none twice
    - `metaadamw report runs --out report`: tables, figures and statistics of what has run
    - `metaadamw pack runs --out packed`: the same runs in a few compressed files

    Exit codes: 0 done, 1 something failed, 2 wrong usage, 130 interrupted.
    """
