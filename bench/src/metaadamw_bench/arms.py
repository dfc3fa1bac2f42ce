"""The optimizers that are compared; adding one is an ``Arm`` in the list below."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from metaadamw import Attention, Factors, Hypergradient, LookAhead, TwoHorizons, Windows
from metaadamw.learning.base import LearningOptions
from metaadamw.modulators.base import ModulatorKind
from metaadamw_bench import arm_settings, optimizers
from metaadamw_bench.arm import Arm
from metaadamw_bench.arm_settings import DECAY_PER_STEP, TUNING_GRID, TUNING_SEED
from metaadamw_bench.config import RunConfig
from metaadamw_bench.names import unknown
from metaadamw_bench.optimizers import Stepper
from metaadamw_bench.replay import Part
from metaadamw_bench.tasks import PreparedTask

__all__ = ["ARMS", "TUNING_GRID", "TUNING_SEED", "get_arm"]


def _ours(
    name: str,
    title: str,
    description: str,
    settings: Callable[[PreparedTask], dict[str, Any]],
    build: Callable[[nn.Module, RunConfig], Stepper] = optimizers.metaadamw,
) -> Arm:
    """An arm of our own, with the weight decay that they have in common."""
    return Arm(
        name=name,
        title=title,
        description=description,
        build=build,
        settings=settings,
        modulated=True,
        decay_per_step=DECAY_PER_STEP,
    )


def _preset(
    name: str,
    title: str,
    description: str,
    preset: tuple[ModulatorKind, LearningOptions],
    build: Callable[[nn.Module, RunConfig], Stepper] = optimizers.metaadamw,
) -> Arm:
    """An arm with one of the library's presets."""
    return _ours(name, title, description, arm_settings.library(*preset), build)


def _look_ahead(
    name: str,
    title: str,
    description: str,
    *,
    every: int = 10,
    layers: int = 0,
    meta_updates: str = "library",
    **objective: Any,
) -> Arm:
    """An arm whose look-ahead learns: Adam, exact products, a range as wide as that of windows.

    Adam moves a group's own factor by K/100 in log α, at most 0.5, so that the same number of
    steps can move it as far whatever K is; a Transformer by its own learning rate.
    """
    modulator: ModulatorKind = Factors(update_every=1)
    if layers:
        modulator = Attention(
            features="scale_free",
            layers=layers,
            feature_gating=True,
            scale="log",
            alpha_range=Factors().alpha_range,
        )
    rate = 0.01 if layers else min(every / 100, 0.5)
    meta = LookAhead(every=every, optimizer="adam", lr=rate, hvp="exact", **objective)
    settings = arm_settings.library(modulator, meta, meta_updates=meta_updates)
    return _ours(name, title, description, settings)


def _replay(part: Part, factors: str, *, of: str = "scalars") -> Arm:
    """A part of what a run of our own arm did, once that run is known."""
    windows = of == "scalars"
    return Arm(
        name=f"replay-{part}" if windows else f"replay-{of}-{part}",
        title=f"{'windows' if windows else of.replace('-', ' ')} replayed, {part} alone",
        description=(
            f"AdamW with {factors} that the run of metaadamw-{of} with the same seed had, and "
            "with its weight decay; nothing is learned"
        ),
        build=optimizers.replay,
        settings=lambda task: {
            "grouping": "extended",
            "part": part,
            "factors": None,
            "meta_updates": "library",
            **({"window": Windows().window} if windows else {}),
        },
        decay_per_step=DECAY_PER_STEP,
        matches=f"metaadamw-{of}",
    )


_SHARED = "the geometric mean over groups of the factors"
_APART = "the factors, divided by their geometric mean over groups,"


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
            settings=arm_settings.tuned,
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
            settings=arm_settings.tuned,
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
            settings=arm_settings.inverse_time,
            decay_per_step=DECAY_PER_STEP,
        ),
        *(
            Arm(
                name=name,
                title=f"AdamW at {whose} mean α",
                description=f"AdamW, its learning rate times the mean α of the runs of {arm}",
                settings=arm_settings.matched,
                matches=arm,
            )
            for name, whose, arm in (
                ("adamw-matched", "MetaAdamW's", "metaadamw"),
                ("adamw-matched-paper", "the paper's MetaAdamW's", "metaadamw-paper"),
                ("adamw-matched-windows", "the windows'", "metaadamw-slow-mean"),
            )
        ),
        Arm(
            name="metaadamw",
            title="MetaAdamW, look-ahead",
            description="the paper's method with the library's defaults",
            build=optimizers.metaadamw,
            settings=arm_settings.library(Attention(), LookAhead()),
            modulated=True,
        ),
        Arm(
            name="metaadamw-online",
            title="MetaAdamW, online",
            description=(
                "the paper's modulator, which learns inside step() from consecutive gradients, "
                "without meta-updates and without the meta-validation part"
            ),
            build=optimizers.metaadamw,
            settings=arm_settings.library(Attention(), Hypergradient()),
            modulated=True,
        ),
        _preset(
            "metaadamw-two-horizons",
            "MetaAdamW, two horizons",
            "the default: metaadamw-slow-mean, and every 4th step moves the factors apart by "
            "what the gradient says of the last one, their mean staying where windows have it; "
            f"a step decays the parameters by {DECAY_PER_STEP:g}",
            (Factors(), TwoHorizons()),
        ),
        _preset(
            "metaadamw-two-horizons-cosine",
            "MetaAdamW, two horizons, cosine",
            "metaadamw-two-horizons, its learning rate falling to zero along half a cosine",
            (Factors(), TwoHorizons()),
            optimizers.metaadamw_cosine,
        ),
        _preset(
            "metaadamw-factors",
            "MetaAdamW, single steps",
            "metaadamw-two-horizons without windows: every 4th step moves all of the factors",
            (Factors(), Hypergradient()),
        ),
        _preset(
            "metaadamw-slow-mean",
            "MetaAdamW, windows",
            "windows: online with a horizon that grows with the run, from 75 steps to a "
            "tenth of it, a factor for each group, no attention; the mean of the factors moves at "
            "half the speed of their differences; "
            f"a step decays the parameters by {DECAY_PER_STEP:g}",
            (Factors(update_every=1), Windows()),
        ),
        _preset(
            "metaadamw-slow-mean-attention",
            "MetaAdamW, windows, attention",
            "metaadamw-slow-mean with the modulator, one layer, in place of a factor for each "
            "group, moved by Gauss–Newton: whether attention earns its place",
            (Attention(features="scale_free", scale="log", alpha_range=4.0, layers=1), Windows()),
        ),
        _ours(
            "metaadamw-carried",
            "MetaAdamW, windows, carried",
            "metaadamw-slow-mean with factors that start half of the way to where groups of "
            "their kind ended on the paper's other tasks, this one left out",
            arm_settings.carried,
        ),
        _ours(
            "metaadamw-carried-frozen",
            "carried factors, frozen",
            "the factors that metaadamw-carried starts with; nothing is learned",
            arm_settings.carried_frozen,
        ),
        _preset(
            "metaadamw-scalars",
            "MetaAdamW, first windows",
            "metaadamw-slow-mean as it was before: every factor goes its own way, from "
            f"{arm_settings.FIRST_ALPHA:g} on, and falls no faster than 1/t",
            arm_settings.first_preset(),
            optimizers.first_windows,
        ),
        _preset(
            "metaadamw-window",
            "MetaAdamW, first windows, attention",
            "metaadamw-scalars with the modulator, one layer, in place of a factor for each "
            "group, moved by Gauss–Newton",
            arm_settings.first_preset(layers=1),
            optimizers.first_windows,
        ),
        _preset(
            "metaadamw-redistribution",
            "MetaAdamW, redistribution",
            "metaadamw-slow-mean with factors whose geometric mean over the groups stays 1",
            (Factors(mean_preserving=True, update_every=1), Windows()),
        ),
        _preset(
            "metaadamw-redistribution-cosine",
            "MetaAdamW, redistribution, cosine",
            "metaadamw-redistribution, its learning rate falling to zero along half a cosine",
            (Factors(mean_preserving=True, update_every=1), Windows()),
            optimizers.metaadamw_cosine,
        ),
        _look_ahead(
            "metaadamw-loss-decrease",
            "look-ahead, loss",
            "look-ahead every 10 steps with the loss on a meta-validation batch as its objective, "
            "a factor for each group, moved by Adam; the decay of metaadamw-slow-mean",
            objective="loss_decrease",
        ),
        *(
            _look_ahead(
                f"metaadamw-loss-decrease-{every}",
                f"look-ahead, loss, K = {every}",
                f"metaadamw-loss-decrease with a meta-update every {every} steps",
                every=every,
                objective="loss_decrease",
            )
            for every in (1, 100, 500)
        ),
        _look_ahead(
            "metaadamw-loss-decrease-training",
            "look-ahead, training loss",
            "metaadamw-loss-decrease with batches of the training part in place of meta-validation",
            meta_updates="training",
            objective="loss_decrease",
        ),
        _look_ahead(
            "metaadamw-loss-decrease-attention",
            "look-ahead, loss, attention",
            "metaadamw-loss-decrease with the modulator, two layers and feature gates, in place of "
            "a factor for each group",
            layers=2,
            objective="loss_decrease",
        ),
        _look_ahead(
            "metaadamw-gradient-alignment",
            "look-ahead, alignment",
            "metaadamw-loss-decrease with gradient alignment (Eq. 10) as its objective",
            objective="gradient_alignment",
        ),
        _look_ahead(
            "metaadamw-combined",
            "look-ahead, three terms",
            "metaadamw-loss-decrease with the paper's objective, weighted by uncertainty within "
            "bounds, its gap taken where it depends on the modulator",
            gap_at="theta_prime",
        ),
        _replay("schedule", _SHARED),
        _replay("redistribution", _APART),
        _replay("schedule", _SHARED, of="two-horizons"),
        _replay("redistribution", _APART, of="two-horizons"),
        _replay("decay", "the factors β alone", of="two-horizons"),
        Arm(
            name="metaadamw-paper",
            title="MetaAdamW, paper",
            description=(
                "the paper's settings of the task (Tables 1 and 4), meta-updates as often per "
                "epoch as there; for a task that is not the paper's, those of wikitext2"
            ),
            build=optimizers.metaadamw,
            settings=arm_settings.paper,
            modulated=True,
        ),
        Arm(
            name="metaadamw-as-run",
            title="MetaAdamW, as its authors ran it",
            description="metaadamw-paper with what the authors' code does differently (as_run)",
            build=optimizers.metaadamw,
            settings=arm_settings.as_run,
            modulated=True,
        ),
        Arm(
            name="metaadamw-random",
            title="random modulator, frozen",
            description="metaadamw-paper without learning: the modulator keeps its random weights",
            build=optimizers.metaadamw,
            settings=arm_settings.random,
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
        raise ValueError(f"arm: {unknown(name, ARMS)}")
    return ARMS[name]
