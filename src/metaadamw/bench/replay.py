r"""What of a recorded run helps: its schedule, or how it tells groups apart.

The factors of a run are taken apart into what all groups share and what sets them apart,

.. math:: \alpha_g(t) = \bar\alpha(t) \cdot \frac{\alpha_g(t)}{\bar\alpha(t)}

with :math:`\bar\alpha` the geometric mean over groups, and one part is replayed without the other.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from metaadamw import Schedule
from metaadamw.window import window_at

__all__ = ["Part", "recorded_factors", "schedule"]

Part = Literal["schedule", "redistribution"]


def recorded_factors(path: Path, *, first: int) -> dict[str, Any]:
    """The factors of every window of a run, as plain values.

    Args:
        path: the run's ``modulation.csv``; windows hold their factors, so one record tells.
        first: the length of the first window.

    Raises:
        ValueError: a window without a record, or a file that is none of factors.
    """
    try:
        return _recorded_factors(path, first)
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold all factors of a run: {error}") from error


def _recorded_factors(path: Path, first: int) -> dict[str, Any]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows, names = list(reader), reader.fieldnames or []
    groups = [name.removesuffix("/alpha") for name in names if name.endswith("/alpha")]
    begins: list[int] = []
    alpha: list[list[float]] = []
    expected = 0
    for row in rows:
        begin, end = window_at(int(row["step"]) - 1, first)
        if begin > expected:
            raise ValueError(f"no record of the window that begins at step {expected}")
        if begin == expected:
            begins.append(begin)
            alpha.append([float(row[f"{group}/alpha"]) for group in groups])
            expected = end
    if not begins or not groups:
        raise ValueError("there are none")
    return {"groups": groups, "begins": begins, "alpha": alpha}


def schedule(factors: dict[str, Any], part: Part, steps: int) -> Schedule:
    """One part of ``recorded_factors``, for every step; β stays 1."""
    begins = torch.tensor([*factors["begins"][1:], steps]) - torch.tensor(factors["begins"])
    alpha = torch.tensor(factors["alpha"], dtype=torch.float64)  # [windows, G]
    shared = alpha.log().mean(dim=1, keepdim=True).exp().expand_as(alpha)
    chosen: Tensor = shared if part == "schedule" else alpha / shared
    every = chosen.repeat_interleave(begins, dim=0)
    return Schedule(tuple(factors["groups"]), every, torch.ones_like(every))
