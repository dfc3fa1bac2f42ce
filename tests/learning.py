"""Modulators and ways of learning by the names that tests are parametrised with."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from metaadamw import (
    Attention,
    Factors,
    Hypergradient,
    LookAhead,
    Off,
    TwoHorizons,
    Windows,
)

KINDS = {"lookahead": LookAhead, "online": Hypergradient, "off": Off}


def learning_of(mode: str = "lookahead", **options: Any) -> Any:
    """The way of learning, with those of the options that it has."""
    kind = KINDS[mode]
    if mode == "online" and options.get("window", 1) > 1:
        kind = TwoHorizons if options.get("consecutive_lr") else Windows
        options = {"mean_speed": 1.0, **options}
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in options.items() if name in names})


def modulator_of(layers: int = 2, **options: Any) -> Any:
    """Attention with so many layers; without any, factors whose range is the paper's."""
    if layers:
        return Attention(layers=layers, **options)
    alike = {"scale": "linear", "alpha_range": 1.0, "update_every": 1, **options}
    names = {field.name for field in fields(Factors)}
    return Factors(**{name: value for name, value in alike.items() if name in names})
