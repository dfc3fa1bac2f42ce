"""The settings of arms that follow from a task: a configuration of ours, a grid, a share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metaadamw import Attention, Factors, Off, Windows, carried_factors, paper_preset
from metaadamw.learning.base import LearningOptions
from metaadamw.modulators.base import ModulatorKind
from metaadamw_bench.tasks import PreparedTask, get_task
from metaadamw_bench.today import plain_choice

__all__ = [
    "DECAY_PER_STEP",
    "FIRST_ALPHA",
    "TUNING_GRID",
    "TUNING_SEED",
    "as_run",
    "carried",
    "carried_frozen",
    "first_preset",
    "inverse_time",
    "library",
    "matched",
    "paper",
    "random",
    "tuned",
]

TUNING_SEED = 1000
"""What tuned arms are tuned on: a seed that no reported run may have."""

TUNING_GRID = {"lr": (0.3, 1.0, 3.0, 10.0), "weight_decay": (1e-2, 1e-1)}
"""The grid of tuned arms; the learning rates in units of the task's."""

DECAY_PER_STEP = 2e-4
"""Of our own arms: a weight decay of 0.1 on WikiText-2 and Multi30k, of 0.025 on CIFAR-10."""

FIRST_ALPHA = 0.5
"""α at birth in windows as they were first."""

# The paper's full batches per epoch, in whose units its presets count.
_PAPER_EPOCH = {"etth1": 217, "wikitext2": 123, "multi30k": 454, "cifar10": 391, "imdb": 391}


def library(
    modulator: ModulatorKind, learning: LearningOptions, *, meta_updates: str = "library"
) -> Callable[[PreparedTask], dict[str, Any]]:
    """Our groups and these choices, whatever the task is."""
    return lambda task: {
        "grouping": "extended",
        "modulator": plain_choice(modulator),
        "learning": plain_choice(learning),
        "meta_updates": meta_updates,
    }


def carried(task: PreparedTask) -> dict[str, Any]:
    """Windows that start with what the other tasks have taught."""
    without = task.name if get_task(task.name).paper else None
    return library(
        Factors(alpha_start=carried_factors(without=without), update_every=1), Windows()
    )(task)


def carried_frozen(task: PreparedTask) -> dict[str, Any]:
    """The same factors, which nothing changes."""
    return {**carried(task), "learning": plain_choice(Off())}


def first_preset(*, layers: int = 0) -> tuple[ModulatorKind, LearningOptions]:
    """Windows as they were before ``mean_speed``."""
    start: dict[str, Any] = {"scale": "log", "alpha_range": 4.0, "alpha_start": FIRST_ALPHA}
    modulator = (
        Attention(features="scale_free", layers=layers, **start)
        if layers
        else Factors(**start, update_every=1)
    )
    return modulator, Windows(mean_speed=1.0)


def paper(task: PreparedTask, *, as_run: bool = False) -> dict[str, Any]:
    """The paper's settings, meta-updates as often per epoch as there."""
    # The paper does not know every task: then what its smallest model had, once per epoch.
    name = "wikitext2" if get_task(task.name).paper is None else task.name
    modulator, learning = paper_preset(name, as_run=as_run).values()
    scale = task.steps_per_epoch / _PAPER_EPOCH[name]
    return {
        "grouping": "paper",
        "modulator": plain_choice(modulator),
        "learning": {
            **plain_choice(learning),
            "every": max(1, round(learning.every * scale)),
            "warmup_steps": task.steps_per_epoch,
        },
        "meta_updates": "paper" if task.protocol == "paper" else "library",
    }


def as_run(task: PreparedTask) -> dict[str, Any]:
    """The paper's settings with what the authors' code does differently."""
    return paper(task, as_run=True)


def random(task: PreparedTask) -> dict[str, Any]:
    """The paper's settings without learning."""
    settings = paper(task)
    return {**settings, "learning": plain_choice(Off())}


def tuned(task: PreparedTask) -> dict[str, Any]:
    """The grid, and the seed it is searched on."""
    return {"tuning_grid": {k: list(v) for k, v in TUNING_GRID.items()}, "tuning_seed": TUNING_SEED}


def inverse_time(task: PreparedTask) -> dict[str, Any]:
    """What fixes the lower limit of the first windows."""
    return {"alpha_start": FIRST_ALPHA, "window": Windows().window}


def matched(task: PreparedTask) -> dict[str, Any]:
    """A share of the learning rate that is known once the run it comes from is done."""
    return {"mean_alpha": None}
