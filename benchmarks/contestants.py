"""The optimizers that are measured, by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.authors_port import AuthorsMetaAdamW
from benchmarks.models import ParamGroups, all_params
from metaadamw import (
    Attention,
    Factors,
    Hypergradient,
    LookAhead,
    MetaAdamW,
    TwoHorizons,
    Windows,
)

BASELINE = "AdamW fused"
"""What one is: ``torch.optim.AdamW(fused=True)`` with a single param group."""

Build = Callable[[ParamGroups], torch.optim.Optimizer]


@dataclass(frozen=True)
class Contestant:
    """An optimizer to measure.

    Attributes:
        name: as shown in tables.
        build: makes it from param groups.
        bytes_per_parameter: what one step has to move at least, in float32; None if not derived.
        period: steps after which the cost repeats.
    """

    name: str
    build: Build
    bytes_per_parameter: float | None = None
    period: int = 1


ADAMW_BYTES = 28.0
"""Read g, θ, m, v and write θ, m, v: seven times four bytes."""

STATISTICS_BYTES = 8.0
"""The norms of θ, m and v can be taken when they are written; g and ⟨g, m⟩ are read before."""

ONLINE_BYTES = 16.0
"""⟨g, d⟩ of the last step needs g, θ, m and v before they change."""


def layers(count: int, *, update_every: int = 1) -> Attention:
    """A modulator as in the paper's Table 4: six heads, hidden dimension 16 or 64."""
    hidden = 64 if count >= 64 else 16
    return Attention(
        layers=count, heads=6, hidden_dim=hidden, init="xavier", update_every=update_every
    )


def adamw(name: str, **flags: Any) -> Contestant:
    """``torch.optim.AdamW`` with a single group, which is its fastest use."""
    return Contestant(
        name, lambda groups: torch.optim.AdamW(all_params(groups), **flags), ADAMW_BYTES
    )


def metaadamw(name: str, modulator: Attention, *, online: bool = False, **flags: Any) -> Contestant:
    """``MetaAdamW`` with the given modulator, learning at every step if ``online``."""
    flags = {"fused": True, **flags}
    meta = Hypergradient() if online else LookAhead()
    extra = ONLINE_BYTES if online else STATISTICS_BYTES
    return Contestant(
        name,
        lambda groups: MetaAdamW(groups, modulator=modulator, learning=meta, **flags),
        ADAMW_BYTES + extra / modulator.update_every,
        modulator.update_every,
    )


def in_windows(name: str) -> Contestant:
    """``MetaAdamW`` as ``Windows`` makes it: dear in one step of 75 or more."""
    modulator, meta = (Factors(), Windows())
    return Contestant(
        name,
        lambda groups: MetaAdamW(groups, modulator=modulator, learning=meta, fused=True),
        ADAMW_BYTES,
        meta.window,
    )


def two_horizons(name: str, **flags: Any) -> Contestant:
    """``MetaAdamW`` as it is by default: dearer every fourth step, dear once in a window.

    A step more to a window than there, so that both come together again.
    """
    modulator, meta = (Factors(), TwoHorizons(window=76))
    return Contestant(
        name,
        lambda groups: MetaAdamW(groups, modulator=modulator, learning=meta, **flags),
        ADAMW_BYTES + ONLINE_BYTES / modulator.update_every,
        meta.window,
    )


def authors(name: str, modulator: Attention) -> Contestant:
    """The plain port of the authors' code."""
    return Contestant(name, lambda groups: AuthorsMetaAdamW(groups, modulator, LookAhead()))


def peers() -> list[Contestant]:
    """Optimizers of other packages, as far as they are installed."""
    known: Mapping[str, tuple[str, str, dict[str, Any]]] = {
        "optimi AdamW": ("optimi", "AdamW", {"lr": 1e-3}),
        "schedule-free AdamW": ("schedulefree", "AdamWScheduleFree", {"lr": 1e-3}),
        "Prodigy": ("prodigyopt", "Prodigy", {}),
    }
    result = []
    for name, (module, cls, arguments) in known.items():
        try:
            optimizer = getattr(importlib.import_module(module), cls)
        except ImportError:
            continue
        result.append(Contestant(name, _of_params(optimizer, arguments)))
    return result


def _of_params(optimizer: Callable[..., Any], arguments: dict[str, Any]) -> Build:
    def build(groups: ParamGroups) -> torch.optim.Optimizer:
        built = optimizer(all_params(groups), **arguments)
        if hasattr(built, "train"):  # schedule-free has two modes
            built.train()
        return built

    return build


def for_model() -> Sequence[Contestant]:
    """Everything, for a model's groups."""
    return (
        adamw(BASELINE, fused=True),
        adamw("AdamW foreach", foreach=True),
        adamw("AdamW by default"),
        metaadamw("MetaAdamW, 2 layers", layers(2)),
        metaadamw("MetaAdamW, 8 layers", layers(8)),
        metaadamw("MetaAdamW, 128 layers", layers(128)),
        metaadamw("MetaAdamW, 8 layers, every 8th step", layers(8, update_every=8)),
        metaadamw("MetaAdamW, 128 layers, every 8th step", layers(128, update_every=8)),
        metaadamw("MetaAdamW online, 2 layers", layers(2), online=True),
        metaadamw("MetaAdamW online, 8 layers", layers(8), online=True),
        in_windows("MetaAdamW in windows"),
        two_horizons("MetaAdamW at two horizons", fused=True),
        two_horizons("MetaAdamW at two horizons, by default"),
        authors("authors' code, 8 layers", layers(8)),
        authors("authors' code, 128 layers", layers(128)),
        *peers(),
    )


def for_growth(encoder_layers: int = 2) -> Sequence[Contestant]:
    """The few whose growth is drawn."""
    return (
        adamw(BASELINE, fused=True),
        adamw("AdamW foreach", foreach=True),
        metaadamw("MetaAdamW", layers(encoder_layers)),
        metaadamw("MetaAdamW, every 8th step", layers(encoder_layers, update_every=8)),
        metaadamw("MetaAdamW online", layers(encoder_layers), online=True),
        in_windows("MetaAdamW in windows"),
        authors("authors' code", layers(encoder_layers)),
    )
