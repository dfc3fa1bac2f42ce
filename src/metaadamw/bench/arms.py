"""The optimizers that are compared; adding one is an ``Arm`` in the list below."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from torch import nn

from metaadamw import MetaConfig, ModulatorConfig, paper_preset, windows_preset
from metaadamw.bench import optimizers
from metaadamw.bench.arm import Arm
from metaadamw.bench.config import RunConfig
from metaadamw.bench.optimizers import Stepper
from metaadamw.bench.replay import Part
from metaadamw.bench.tasks import PreparedTask, get_task
from metaadamw.carried import carried_factors

__all__ = ["ARMS", "TUNING_GRID", "TUNING_SEED", "get_arm"]

TUNING_SEED = 1000
"""What tuned arms are tuned on: a seed that no reported run may have."""

TUNING_GRID = {"lr": (0.3, 1.0, 3.0, 10.0), "weight_decay": (1e-2, 1e-1)}
"""The grid of tuned arms; the learning rates in units of the task's."""

DECAY_PER_STEP = 2e-4
"""Of our own arms: a weight decay of 0.1 on WikiText-2 and Multi30k, of 0.025 on CIFAR-10."""

_FIRST_ALPHA = 0.5
"""α at birth in windows as they were first."""

# The paper's full batches per epoch, in whose units its presets count.
_PAPER_EPOCH = {"etth1": 217, "wikitext2": 123, "multi30k": 454, "cifar10": 391, "imdb": 391}


def _library(
    modulator: ModulatorConfig, meta: MetaConfig
) -> Callable[[PreparedTask], dict[str, Any]]:
    """Our groups and these configurations, whatever the task is."""
    return lambda task: {
        "grouping": "extended",
        "modulator": asdict(modulator),
        "meta": asdict(meta),
        "meta_updates": "library",
    }


def _windows(
    name: str,
    title: str,
    description: str,
    preset: tuple[ModulatorConfig, MetaConfig],
    build: Callable[[nn.Module, RunConfig], Stepper] = optimizers.metaadamw,
) -> Arm:
    """An arm in windows."""
    return Arm(
        name=name,
        title=title,
        description=description,
        build=build,
        settings=_library(*preset),
        modulated=True,
        decay_per_step=DECAY_PER_STEP,
    )


def _carried(task: PreparedTask) -> dict[str, Any]:
    """Windows that start with what the other tasks have taught."""
    modulator, meta = windows_preset()
    without = task.name if get_task(task.name).paper else None
    starts = carried_factors(without=without)
    return _library(replace(modulator, alpha_start=starts), meta)(task)


def _carried_frozen(task: PreparedTask) -> dict[str, Any]:
    """The same factors, which nothing changes."""
    settings = _carried(task)
    return settings | {"meta": asdict(MetaConfig(mode="off"))}


def _first_preset(*, layers: int = 0) -> tuple[ModulatorConfig, MetaConfig]:
    """What ``windows_preset`` was before ``mean_speed``."""
    modulator, meta = windows_preset(layers=layers)
    return replace(modulator, alpha_start=_FIRST_ALPHA), replace(meta, mean_speed=1.0)


def _paper(task: PreparedTask, *, as_run: bool = False) -> dict[str, Any]:
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


def _as_run(task: PreparedTask) -> dict[str, Any]:
    return _paper(task, as_run=True)


def _random(task: PreparedTask) -> dict[str, Any]:
    settings = _paper(task)
    return {**settings, "meta": asdict(MetaConfig(mode="off"))}


def _tuned(task: PreparedTask) -> dict[str, Any]:
    return {"tuning_grid": {k: list(v) for k, v in TUNING_GRID.items()}, "tuning_seed": TUNING_SEED}


def _inverse_time(task: PreparedTask) -> dict[str, Any]:
    return {"alpha_start": _FIRST_ALPHA, "window": windows_preset()[1].window}


def _matched(task: PreparedTask) -> dict[str, Any]:
    return {"mean_alpha": None}


def _replay(part: Part, factors: str) -> Arm:
    """Half of what a run of our own arm did, once that run is known."""
    return Arm(
        name=f"replay-{part}",
        title=f"windows replayed, {part} alone",
        description=(
            f"AdamW with {factors} that the run of metaadamw-scalars with the same seed had, and "
            "with its weight decay; nothing is learned"
        ),
        build=optimizers.replay,
        settings=lambda task: {
            "grouping": "extended",
            "part": part,
            "window": windows_preset()[1].window,
            "factors": None,
            "meta_updates": "library",
        },
        decay_per_step=DECAY_PER_STEP,
        matches="metaadamw-scalars",
    )


_GRID = (
    f"learning rates {', '.join(f'{factor:g}' for factor in TUNING_GRID['lr'])} times the task's, "
    f"weight decays {', '.join(f'{value:g}' for value in TUNING_GRID['weight_decay'])}"
)

ARMS = {
    arm.name: arm
    for arm in (
        Arm(
            name="adamw",
            title="AdamW",
            description="torch.optim.AdamW with the task's learning rate and weight decay",
        ),
        Arm(
            name="adamw-tuned",
            title="AdamW, tuned",
            description=(
                f"AdamW with the best on validation of {_GRID}; tuned on seed {TUNING_SEED}, "
                "which no reported run has, and with the same number of epochs"
            ),
            settings=_tuned,
            tunes="adamw",
        ),
        Arm(
            name="adamw-cosine",
            title="AdamW, cosine",
            description="AdamW, its learning rate falling to zero along half a cosine",
            build=optimizers.adamw_cosine,
        ),
        Arm(
            name="adamw-tuned-cosine",
            title="AdamW, cosine, tuned",
            description="adamw-cosine, tuned like adamw-tuned",
            build=optimizers.adamw_cosine,
            settings=_tuned,
            tunes="adamw-cosine",
        ),
        Arm(
            name="adamw-inverse-time",
            title="AdamW, 1/t",
            description=(
                "AdamW on the lower limit of metaadamw-scalars and with its weight decay: half the "
                "task's learning rate for 750 steps, then falling like 1/t; nothing is learned"
            ),
            build=optimizers.adamw_inverse_time,
            settings=_inverse_time,
            decay_per_step=DECAY_PER_STEP,
        ),
        Arm(
            name="adamw-matched",
            title="AdamW at MetaAdamW's mean α",
            description="AdamW, its learning rate times the mean α of the runs of metaadamw",
            settings=_matched,
            matches="metaadamw",
        ),
        Arm(
            name="adamw-matched-paper",
            title="AdamW at the paper's MetaAdamW's mean α",
            description="AdamW, its learning rate times the mean α of the runs of metaadamw-paper",
            settings=_matched,
            matches="metaadamw-paper",
        ),
        Arm(
            name="adamw-matched-windows",
            title="AdamW at the windows' mean α",
            description="AdamW, its learning rate times the mean α of metaadamw-slow-mean's runs",
            settings=_matched,
            matches="metaadamw-slow-mean",
        ),
        Arm(
            name="metaadamw",
            title="MetaAdamW, look-ahead",
            description="the library's defaults",
            build=optimizers.metaadamw,
            settings=_library(ModulatorConfig(), MetaConfig()),
            modulated=True,
        ),
        Arm(
            name="metaadamw-online",
            title="MetaAdamW, online",
            description=(
                "the library's defaults in online mode: the modulator learns inside step(), "
                "without meta-updates and without the meta-validation part"
            ),
            build=optimizers.metaadamw,
            settings=_library(ModulatorConfig(), MetaConfig(mode="online")),
            modulated=True,
        ),
        _windows(
            "metaadamw-slow-mean",
            "MetaAdamW, windows",
            "windows_preset: online with a horizon that grows with the run, from 75 steps to a "
            "tenth of it, a factor for each group, no attention; the mean of the factors moves at "
            "half the speed of their differences; "
            f"a step decays the parameters by {DECAY_PER_STEP:g}",
            windows_preset(),
        ),
        _windows(
            "metaadamw-slow-mean-cosine",
            "MetaAdamW, windows, cosine",
            "metaadamw-slow-mean, its learning rate falling to zero along half a cosine",
            windows_preset(),
            optimizers.metaadamw_cosine,
        ),
        _windows(
            "metaadamw-slow-mean-attention",
            "MetaAdamW, windows, attention",
            "metaadamw-slow-mean with the modulator, one layer, in place of a factor for each "
            "group, moved by Gauss–Newton: whether attention earns its place",
            windows_preset(layers=1),
        ),
        Arm(
            name="metaadamw-carried",
            title="MetaAdamW, windows, carried",
            description=(
                "metaadamw-slow-mean with factors that start half of the way to where groups of "
                "their kind ended on the paper's other tasks, this one left out"
            ),
            build=optimizers.metaadamw,
            settings=_carried,
            modulated=True,
            decay_per_step=DECAY_PER_STEP,
        ),
        Arm(
            name="metaadamw-carried-frozen",
            title="carried factors, frozen",
            description="the factors that metaadamw-carried starts with; nothing is learned",
            build=optimizers.metaadamw,
            settings=_carried_frozen,
            modulated=True,
            decay_per_step=DECAY_PER_STEP,
        ),
        _windows(
            "metaadamw-scalars",
            "MetaAdamW, first windows",
            "metaadamw-slow-mean as it was before: every factor goes its own way, from "
            f"{_FIRST_ALPHA:g} on, and falls no faster than 1/t",
            _first_preset(),
            optimizers.first_windows,
        ),
        _windows(
            "metaadamw-scalars-cosine",
            "MetaAdamW, first windows, cosine",
            "metaadamw-scalars, its learning rate falling to zero along half a cosine",
            _first_preset(),
            optimizers.first_windows_cosine,
        ),
        _windows(
            "metaadamw-window",
            "MetaAdamW, first windows, attention",
            "metaadamw-scalars with the modulator, one layer, in place of a factor for each "
            "group, moved by Gauss–Newton",
            _first_preset(layers=1),
            optimizers.first_windows,
        ),
        _windows(
            "metaadamw-redistribution",
            "MetaAdamW, redistribution",
            "metaadamw-slow-mean with factors whose geometric mean over the groups stays 1",
            windows_preset(mean_preserving=True),
        ),
        _windows(
            "metaadamw-redistribution-cosine",
            "MetaAdamW, redistribution, cosine",
            "metaadamw-redistribution, its learning rate falling to zero along half a cosine",
            windows_preset(mean_preserving=True),
            optimizers.metaadamw_cosine,
        ),
        _replay("schedule", "the geometric mean over groups of the factors"),
        _replay("redistribution", "the factors, divided by their geometric mean over groups,"),
        Arm(
            name="metaadamw-paper",
            title="MetaAdamW, paper",
            description=(
                "the paper's settings of the task (Tables 1 and 4), meta-updates as often per "
                "epoch as there; for a task that is not the paper's, those of wikitext2"
            ),
            build=optimizers.metaadamw,
            settings=_paper,
            modulated=True,
        ),
        Arm(
            name="metaadamw-as-run",
            title="MetaAdamW, as its authors ran it",
            description="metaadamw-paper with what the authors' code does differently (as_run)",
            build=optimizers.metaadamw,
            settings=_as_run,
            modulated=True,
        ),
        Arm(
            name="metaadamw-random",
            title="random modulator, frozen",
            description="metaadamw-paper without learning: the modulator keeps its random weights",
            build=optimizers.metaadamw,
            settings=_random,
            modulated=True,
        ),
        Arm(
            name="schedulefree",
            title="schedule-free AdamW",
            description=(
                "schedulefree.AdamWScheduleFree with the task's learning rate; as its package asks "
                "for, the statistics of batch norms are refreshed before every evaluation"
            ),
            build=optimizers.schedule_free,
            requires="schedulefree",
        ),
        Arm(
            name="prodigy",
            title="Prodigy",
            description="prodigyopt.Prodigy with lr = 1: it finds its learning rate itself",
            build=optimizers.prodigy,
            lr=1.0,
            requires="prodigyopt",
        ),
        Arm(
            name="nadam",
            title="NAdamW",
            description="torch.optim.NAdam with decoupled weight decay",
            build=optimizers.nadam,
        ),
        Arm(
            name="muon",
            title="Muon",
            description=(
                "torch.optim.Muon, updates scaled like AdamW's, for the hidden matrices; AdamW for "
                "embeddings, the last linear layer and everything that is not a matrix; does not "
                "fit a model without hidden matrices"
            ),
            build=optimizers.muon,
            fits=optimizers.has_hidden_matrices,
        ),
    )
}


def get_arm(name: str) -> Arm:
    """Look an arm up by its name.

    Raises:
        ValueError: no arm has this name.
    """
    if name not in ARMS:
        raise ValueError(f"arm: {name!r} is not one of {', '.join(ARMS)}")
    return ARMS[name]
