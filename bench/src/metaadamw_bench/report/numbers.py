"""How numbers are written in tables."""

from __future__ import annotations

import math
from collections.abc import Iterable

from metaadamw_bench.report.collection import mean_and_deviation

__all__ = ["epochs", "equals", "metric", "p_value", "percent", "seconds", "spread"]

_DIGITS = 4


def _decimals(value: float, digits: int) -> int:
    """Decimals that show so many significant digits."""
    if value == 0 or not math.isfinite(value):
        return digits
    return min(9, max(0, digits - 1 - math.floor(math.log10(abs(value)))))


def metric(value: float) -> str:
    """A single number, four significant digits."""
    return f"{value:.{_decimals(value, _DIGITS)}f}"


def spread(values: Iterable[float]) -> str:
    """``mean ± sd``, the deviation with two digits; the mean alone if there is one value."""
    given = list(values)
    if not given:
        return ""
    mean, deviation = mean_and_deviation(given)
    if deviation is None:
        return metric(mean)
    # Values that are equal to the last digit have no deviation that could set the digits.
    digits = _decimals(deviation, 2) if deviation > 1e-9 * abs(mean) else _decimals(mean, _DIGITS)
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def percent(value: float) -> str:
    """A signed percentage, three digits."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    written = f"{value:+.{digits}f}"
    # What rounds to zero has no sign.
    return f"{written if float(written) else written[1:]} %".replace("-", "−")


def seconds(values: Iterable[float]) -> str:
    """Seconds, ``mean ± sd``."""
    given = list(values)
    if not given:
        return ""
    mean, deviation = mean_and_deviation(given)
    digits = 0 if mean >= 1000 else 1 if mean >= 10 else 3
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def epochs(values: Iterable[float]) -> str:
    """Epochs, ``mean ± sd``; the mean alone if all are equal."""
    given = list(values)
    if len(set(given)) < 2:
        return f"{given[0]:g}" if given else ""
    mean, deviation = mean_and_deviation(given)
    return f"{mean:.1f} ± {deviation:.1f}"


def p_value(value: float | None) -> str:
    """A p value; empty where there is none."""
    if value is None:
        return ""
    return "< 0.0001" if value < 0.0001 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def equals(p: float) -> str:
    """A p value with its sign of equality."""
    written = p_value(p)
    return written if written.startswith("<") else f"= {written}"
