"""What ``modulator=`` and ``learning=`` may be, and what one of them alone stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from metaadamw.learning.base import LearningOptions
from metaadamw.learning.hypergradient import Hypergradient
from metaadamw.learning.lookahead.lookahead import LookAhead
from metaadamw.learning.off import Off
from metaadamw.learning.two_horizons import TwoHorizons
from metaadamw.learning.windows import Windows
from metaadamw.modulators.attention import Attention
from metaadamw.modulators.base import ModulatorKind
from metaadamw.modulators.factors import Factors
from metaadamw.modulators.schedule import Schedule
from metaadamw.options import choose

__all__ = ["LEARNING", "MODULATORS", "chosen"]

MODULATORS: Mapping[str, Callable[..., ModulatorKind]] = {
    "factors": Factors,
    "attention": Attention,
    "schedule": Schedule.load,
}

LEARNING: Mapping[str, Callable[..., LearningOptions]] = {
    "two_horizons": TwoHorizons,
    "hypergradient": Hypergradient,
    "windows": Windows,
    "lookahead": LookAhead,
    "off": Off,
}

_MODULATOR_OF: Mapping[type, type[ModulatorKind]] = {LookAhead: Attention, Off: Attention}
"""What a way of learning moves if nothing else is said; ``Factors`` where it is not here."""

_LEARNING_OF: Mapping[type, type[LearningOptions]] = {Attention: Hypergradient, Schedule: Off}
"""What moves a modulator if nothing else is said; ``TwoHorizons`` where it is not here."""


def chosen(modulator: Any, learning: Any) -> tuple[ModulatorKind, LearningOptions]:
    """The two choices as objects that go together.

    Args:
        modulator: a name, a dict of plain values with the key "kind", an object, or None.
        learning: likewise.

    Raises:
        ValueError: an unknown name; two that do not go together.
        TypeError: anything else, an unknown option.

    Example:
        >>> kind, learning = chosen(None, {"kind": "lookahead", "every": 5})
        >>> type(kind).__name__, learning.every
        ('Attention', 5)
    """
    kind = way = None
    if modulator is not None:
        kind = choose("modulator", modulator, MODULATORS, ModulatorKind)
    if learning is not None:
        way = choose("learning", learning, LEARNING, LearningOptions)
    if kind is None:
        kind = _MODULATOR_OF.get(type(way), Factors)()
    if way is None:
        way = _LEARNING_OF.get(type(kind), TwoHorizons)()
    way.check_moves(kind)
    return kind, way
