"""Configurations with a name: the paper's (Tables 1 and 4), and the one the evidence has chosen."""

from __future__ import annotations

from typing import Any

from metaadamw.carried import carried_factors
from metaadamw.config import AS_RUN, MetaConfig, ModulatorConfig, check_choice

__all__ = ["online_preset", "paper_preset", "windows_preset"]

_TABLE_4: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "etth1": (
        {"layers": 8, "hidden_dim": 16, "heads": 6, "feature_gating": True},
        {"every": 217, "warmup_steps": 217},
    ),
    "wikitext2": (
        {"layers": 8, "hidden_dim": 16, "heads": 6},
        {"every": 123, "warmup_steps": 123},
    ),
    "multi30k": (
        {"layers": 128, "hidden_dim": 64, "heads": 6},
        {"every": 454, "warmup_steps": 454, "priorities": (2.0, 5.0, 1.0)},
    ),
    "cifar10": (
        {"layers": 64, "hidden_dim": 64, "heads": 6},
        {"every": 190, "warmup_steps": 391, "priorities": (5.0, 2.0, 1.0)},
    ),
    "imdb": (
        {
            "layers": 64,
            "hidden_dim": 64,
            "heads": 11,
            "features": "basic_plus",
            "feature_gating": True,
        },
        {"every": 39, "warmup_steps": 391, "priorities": (1.0, 3.0, 5.0)},
    ),
}

# Of our own presets.
_LOG_FACTORS: dict[str, Any] = {"features": "scale_free", "scale": "log", "alpha_range": 4.0}
_CONSECUTIVE_LR = 0.04


def paper_preset(task: str, *, as_run: bool = False) -> tuple[ModulatorConfig, MetaConfig]:
    r"""The modulator and meta-learning configuration of a task of the paper (Tables 1 and 4).

    The base optimizer of every task is ``lr=5e-4, betas=(0.9, 0.999), weight_decay=1e-2`` (Table
    1). The warm-up of one epoch is given in steps of the paper's batch size.

    Args:
        task: "etth1", "wikitext2", "multi30k", "cifar10" or "imdb".
        as_run: also repeat what the authors' code does differently from their paper: β without a
            meta-gradient, the look-ahead from the stored moments, gates that never learn, weight
            decay divided by :math:`1-\beta_1^t`, the published unbounded Eq. 13, and for IMDB the
            columns that their "basic_plus" really had.

    Returns:
        The two configurations, to be given to ``MetaAdamW(..., modulator=, meta=)``.

    Raises:
        ValueError: an unknown task.

    Example:
        >>> modulator, meta = paper_preset("wikitext2")
        >>> modulator.heads, meta.every
        (6, 123)
    """
    check_choice("task", task, tuple(_TABLE_4))
    modulator, meta = _TABLE_4[task]
    if as_run:
        meta = {**meta, "log_variance_bound": None, "as_run": AS_RUN}
        if modulator.get("features") == "basic_plus":
            modulator = {**modulator, "features": "basic_plus_as_run"}
    # Central differences: on these models they take less time and a fraction of the memory.
    meta = {"hvp": "finite_difference", **meta}
    return ModulatorConfig(init="xavier", **modulator), MetaConfig(**meta)


def online_preset(
    *, window: int = 75, mean_preserving: bool = False
) -> tuple[ModulatorConfig, MetaConfig]:
    """Online mode as the evidence has it: a factor for each group, learned at two horizons.

    Factors start at 1 and stay within e^±4. They learn inside ``step()``, from the training
    gradients alone. At every fourth step, from what the gradient at hand says of the last one, Adam
    moves their logarithms by some hundredths; at the end of a window, from where the last two went,
    they move by up to two or so, what they have in common by half as much. Single steps are many
    and short-sighted, so of α they only tell the groups apart; how high the rates are as a whole is
    left to windows, which grow with the run. β learns from single steps alone. Two more copies of
    the parameters. With a single group there is nothing to tell apart: give it several.

    With or without a learning rate schedule: what one turns down, windows hardly turn up again.

    Args:
        window: steps of the first window; 1 leaves everything to single steps, without the
            copies, for runs of some hundred steps.
        mean_preserving: their geometric mean stays 1, and each stays within e^±8: the rate as a
            whole is yours alone.

    Returns:
        The two configurations, to be given to ``MetaAdamW(..., modulator=, meta=)``.

    Raises:
        ValueError: a window below 1.

    Example:
        >>> modulator, meta = online_preset()
        >>> modulator.layers, modulator.update_every, meta.window
        (0, 4, 75)

    Source: ``docs/evidence.md`` says how it was chosen and what it is worth.
    """
    modulator = ModulatorConfig(
        **_LOG_FACTORS, layers=0, mean_preserving=mean_preserving, update_every=4
    )
    if window == 1:
        return modulator, MetaConfig(mode="online", optimizer="adam", lr=_CONSECUTIVE_LR)
    meta = MetaConfig(
        mode="online",
        window=window,
        mean_speed=1.0 if mean_preserving else 0.5,
        consecutive_lr=_CONSECUTIVE_LR,
    )
    return modulator, meta


def windows_preset(
    *, layers: int = 0, mean_preserving: bool = False, carried: bool = False
) -> tuple[ModulatorConfig, MetaConfig]:
    """Online mode in windows alone, that grow: a factor for each group.

    Factors start at 1 and stay within e^±4; what they have in common moves at half the speed of
    their differences. Learns inside ``step()`` from the training gradients, every 75 steps and
    later ever more rarely, and needs two more copies of the parameters. For runs of a thousand
    steps or more.

    Args:
        layers: of the Transformer; 0 learns the factors of the groups by themselves.
        mean_preserving: their geometric mean stays 1, and each stays within e^±8: the rate as a
            whole is yours alone.
        carried: with ``layers=0``, factors start where groups of their kind ended on other tasks
            (``metaadamw.carried``) instead of at 1; for groups from ``fine_grained_groups``.

    Returns:
        The two configurations, to be given to ``MetaAdamW(..., modulator=, meta=)``.

    Raises:
        ValueError: ``carried`` with a Transformer.

    Example:
        >>> modulator, meta = windows_preset()
        >>> modulator.layers, meta.window
        (0, 75)

    Source: ``docs/evidence.md`` says how it was chosen and what it is worth.
    """
    modulator = ModulatorConfig(
        **_LOG_FACTORS,
        layers=layers,
        mean_preserving=mean_preserving,
        alpha_start=carried_factors() if carried else 1.0,
    )
    mean_speed = 1.0 if mean_preserving else 0.5
    return modulator, MetaConfig(mode="online", window=75, mean_speed=mean_speed)
