"""The settings of arms that follow from a task: a configuration of ours, a grid, a share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from metaadamw import MetaConfig, ModulatorConfig, paper_preset, windows_preset
from metaadamw.bench.tasks import PreparedTask, get_task
from metaadamw.carried import carried_factors

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
    modulator: ModulatorConfig, meta: MetaConfig, *, meta_updates: str = "library"
) -> Callable[[PreparedTask], dict[str, Any]]:
    """Our groups and these configurations, whatever the task is."""
    return lambda task: {
        "grouping": "extended",
        "modulator": asdict(modulator),
        "meta": asdict(meta),
        "meta_updates": meta_updates,
    }


def carried(task: PreparedTask) -> dict[str, Any]:
    """Windows that start with what the other tasks have taught."""
    modulator, meta = windows_preset()
    without = task.name if get_task(task.name).paper else None
    starts = carried_factors(without=without)
    return library(replace(modulator, alpha_start=starts), meta)(task)


def carried_frozen(task: PreparedTask) -> dict[str, Any]:
    """The same factors, which nothing changes."""
    settings = carried(task)
    return settings | {"meta": asdict(MetaConfig(mode="off"))}


def first_preset(*, layers: int = 0) -> tuple[ModulatorConfig, MetaConfig]:
    """What ``windows_preset`` was before ``mean_speed``."""
    modulator, meta = windows_preset(layers=layers)
    return replace(modulator, alpha_start=FIRST_ALPHA), replace(meta, mean_speed=1.0)


def paper(task: PreparedTask, *, as_run: bool = False) -> dict[str, Any]:
    """The paper's settings, meta-updates as often per epoch as there."""
    if get_task(task.name).paper is None:
        # The paper does not know this task: what its smallest model had, once per epoch.
        modulator, meta = paper_preset("wikitext2", as_run=as_run)
        paper_epoch = _PAPER_EPOCH["wikitext2"]
    else:
        modulator, meta = paper_preset(task.name, as_run=as_run)
        paper_epoch = _PAPER_EPOCH[task.name]
    scale = task.steps_per_epoch / paper_epoch
    return {
        "grouping": "paper",
        "modulator": asdict(modulator),
        "meta": {
            **asdict(meta),
            "every": max(1, round(meta.every * scale)),
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
    return {**settings, "meta": asdict(MetaConfig(mode="off"))}


def tuned(task: PreparedTask) -> dict[str, Any]:
    """The grid, and the seed it is searched on."""
    return {"tuning_grid": {k: list(v) for k, v in TUNING_GRID.items()}, "tuning_seed": TUNING_SEED}


def inverse_time(task: PreparedTask) -> dict[str, Any]:
    """What fixes the lower limit of the first windows."""
    return {"alpha_start": FIRST_ALPHA, "window": windows_preset()[1].window}


def matched(task: PreparedTask) -> dict[str, Any]:
    """A share of the learning rate that is known once the run it comes from is done."""
    return {"mean_alpha": None}
