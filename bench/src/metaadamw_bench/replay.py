r"""What of a recorded run helps: its schedule, how it tells groups apart, or its weight decay.

The factors of a run are taken apart into what all groups share and what sets them apart,

.. math:: \alpha_g(t) = \bar\alpha(t) \cdot \frac{\alpha_g(t)}{\bar\alpha(t)}

with :math:`\bar\alpha` the geometric mean over groups, and :math:`\beta_g(t)`; and one part is
replayed without the others.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from metaadamw import Schedule
from metaadamw.learning.windows import window_at
from metaadamw_bench.stored_runs import open_run

__all__ = ["Part", "recorded_factors", "schedule"]

Part = Literal["schedule", "redistribution", "decay"]


def recorded_factors(path: Path, *, first: int | None) -> dict[str, Any]:
    """The factors of a run, as plain values.

    Args:
        path: the run's ``modulation.csv``, on the disk or in a packed file.
        first: the length of the first window, of a run that holds its factors in windows: one
            record in each tells. None: they hold from one record to the next, about a hundredth of
            the run.

    Raises:
        ValueError: a window without a record, or a file that is none of factors.
    """
    try:
        return _recorded_factors(path, first)
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold all factors of a run: {error}") from error


def _recorded_factors(path: Path, first: int | None) -> dict[str, Any]:
    text = open_run(path.parent).read_text(path.name)
    reader = csv.DictReader(io.StringIO(text, newline=""))
    rows, names = list(reader), reader.fieldnames or []
    groups = [name.removesuffix("/alpha") for name in names if name.endswith("/alpha")]
    steps = [int(row["step"]) - 1 for row in rows]
    begins, rows = (steps, rows) if first is None else _windows(steps, rows, first)
    if not begins or not groups:
        raise ValueError("there are none")
    if begins[0]:
        raise ValueError("no record of the first step")
    alpha, beta = (
        [[float(row[f"{group}/{factor}"]) for group in groups] for row in rows]
        for factor in ("alpha", "beta")
    )
    found = {"groups": groups, "begins": begins, "alpha": alpha}
    return found | {"beta": beta} if first is None else found  # windows say nothing of β


def _windows(
    steps: Sequence[int], rows: Sequence[dict[str, str]], first: int
) -> tuple[list[int], list[dict[str, str]]]:
    """Where each window begins, and a record from it."""
    begins, records, expected = [], [], 0
    for step, row in zip(steps, rows, strict=True):
        begin, end = window_at(step, first)
        if begin > expected:
            raise ValueError(f"no record of the window that begins at step {expected}")
        if begin == expected:
            begins.append(begin)
            records.append(row)
            expected = end
    return begins, records


def schedule(factors: dict[str, Any], part: Part, steps: int) -> Schedule:
    """One part of ``recorded_factors``, for every step; the other factors stay 1."""
    begins = torch.tensor([*factors["begins"][1:], steps]) - torch.tensor(factors["begins"])
    alpha = torch.tensor(factors["alpha"], dtype=torch.float64)  # [records, G]
    shared = alpha.log().mean(dim=1, keepdim=True).exp().expand_as(alpha)
    chosen: dict[Part, Tensor] = {"schedule": shared, "redistribution": alpha / shared}
    if "beta" in factors:
        chosen["decay"] = torch.tensor(factors["beta"], dtype=torch.float64)
    every = chosen[part].repeat_interleave(begins, dim=0)
    ones = torch.ones_like(every)
    pair = (ones, every) if part == "decay" else (every, ones)
    return Schedule(tuple(factors["groups"]), *pair)
