"""Bad values are refused where they are given, by errors that say what is allowed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Sequence
from numbers import Real
from typing import Any, cast

__all__ = [
    "check_choice",
    "check_choices",
    "check_count",
    "check_flag",
    "check_number",
    "check_numbers",
    "check_type",
    "nearest",
]


def nearest(word: object, allowed: Collection[str]) -> str:
    """``; did you mean 'x'?`` if one of the ``allowed`` is near, else nothing."""
    close = difflib.get_close_matches(str(word), allowed, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_choice(name: str, value: object, allowed: Collection[str]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of the ``allowed`` strings."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(
            f"{name} must be one of {sorted(allowed)}, got {value!r}{nearest(value, allowed)}"
        )


def check_number(
    name: str,
    value: Any,
    low: float,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Raise unless ``value`` is a finite real number in the interval from ``low`` to ``high``."""
    interval = (
        f"{'(' if open_low else '['}{low}, {high}{')' if open_high or high == math.inf else ']'}"
    )
    # Real: also the scalars of NumPy, which a scheduler may compute with.
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number in {interval}, got {value!r}")
    number = cast(float, value)
    above = number > low if open_low else number >= low
    below = number < high if open_high else number <= high
    if not (math.isfinite(number) and above and below):
        raise ValueError(f"{name} must be in {interval}, got {value!r}")


def check_count(name: str, value: Any, low: int) -> None:
    """Raise unless ``value`` is an integer of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer >= {low}, got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be an integer >= {low}, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raise ``TypeError`` unless ``value`` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_numbers(
    name: str, value: Any, length: int | None, low: float, *, open_low: bool = False
) -> None:
    """Raise unless ``value`` is a sequence of ``length`` numbers above ``low``."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a sequence of numbers, got {value!r}")
    if len(value) == 0 or (length is not None and len(value) != length):
        wanted = "at least 1" if length is None else length
        raise ValueError(f"{name} must have {wanted} entries, got {len(value)}: {value!r}")
    for i, entry in enumerate(value):
        check_number(f"{name}[{i}]", entry, low, open_low=open_low)


def check_type(name: str, value: Any, *types: type) -> None:
    """Raise ``TypeError`` unless ``value`` is of one of the ``types``."""
    if not isinstance(value, types):
        allowed = " or ".join(t.__name__ for t in types)
        raise TypeError(f"{name} must be of type {allowed}, got {value!r}")


def check_choices(name: str, value: Any, allowed: Collection[str]) -> None:
    """Raise unless ``value`` is a tuple or list of some of the ``allowed`` strings."""
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name} must be a tuple of names, got {value!r}")
    for entry in value:
        check_choice(name, entry, allowed)
